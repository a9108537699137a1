//! The protocol: requests as bytes, replies as values, and a reader that looks at replies without
//! building anything of them.

use crate::Result;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;

/// Appends one request.
pub fn request(out: &mut Vec<u8>, args: &[&[u8]]) {
    header(out, b'*', args.len());
    for arg in args {
        header(out, b'$', arg.len());
        out.extend_from_slice(arg);
        out.extend_from_slice(b"\r\n");
    }
}

/// By hand: millions of requests are made before the clock runs.
fn header(out: &mut Vec<u8>, kind: u8, number: usize) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    let mut rest = number;
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    out.push(kind);
    out.extend_from_slice(&digits[at..]);
    out.extend_from_slice(b"\r\n");
}

/// A reply, taken apart.
#[derive(Debug, Clone)]
pub enum Value {
    Int(i64),
    Text(Vec<u8>),
    Nil,
    Array(Vec<Value>),
}

impl Value {
    pub fn int(&self) -> Result<i64> {
        match self {
            Value::Int(n) => Ok(*n),
            other => Err(format!("an integer was expected, and this came: {other:?}").into()),
        }
    }

    pub fn text(&self) -> Result<String> {
        match self {
            Value::Text(bytes) => Ok(String::from_utf8_lossy(bytes).into_owned()),
            other => Err(format!("text was expected, and this came: {other:?}").into()),
        }
    }

    pub fn array(&self) -> Result<&[Value]> {
        match self {
            Value::Array(values) => Ok(values),
            other => Err(format!("an array was expected, and this came: {other:?}").into()),
        }
    }

    /// What stands behind a name in a map that came as a flat list.
    pub fn field(&self, name: &str) -> Result<&Value> {
        let pairs = self.array()?;
        pairs
            .chunks_exact(2)
            .find(|pair| matches!(&pair[0], Value::Text(key) if key == name.as_bytes()))
            .map(|pair| &pair[1])
            .ok_or_else(|| format!("no {name} in the reply").into())
    }
}

/// A connection for what is not measured: a request, its reply.
pub struct Client {
    reader: BufReader<TcpStream>,
}

impl Client {
    pub fn connect(port: u16) -> Result<Client> {
        let stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_nodelay(true)?;
        Ok(Client { reader: BufReader::with_capacity(1 << 16, stream) })
    }

    /// An error reply is an error.
    pub fn call(&mut self, args: &[&str]) -> Result<Value> {
        let args: Vec<&[u8]> = args.iter().map(|arg| arg.as_bytes()).collect();
        self.call_bytes(&args)
    }

    pub fn call_bytes(&mut self, args: &[&[u8]]) -> Result<Value> {
        let mut out = Vec::new();
        request(&mut out, args);
        self.reader.get_mut().write_all(&out)?;
        self.read().map_err(|e| format!("{}: {e}", String::from_utf8_lossy(args[0])).into())
    }

    pub fn stream(&self) -> &TcpStream {
        self.reader.get_ref()
    }

    /// The next reply, or the next message where this client has subscribed.
    pub fn read(&mut self) -> Result<Value> {
        let mut line = Vec::new();
        self.reader.read_until(b'\n', &mut line)?;
        if !line.ends_with(b"\r\n") {
            return Err("the server closed the connection".into());
        }
        let rest = std::str::from_utf8(&line[1..line.len() - 2])?;
        match line[0] {
            b'+' => Ok(Value::Text(rest.into())),
            b':' => Ok(Value::Int(rest.parse()?)),
            b'$' => {
                let Ok(len) = rest.parse::<usize>() else { return Ok(Value::Nil) };
                let mut bytes = vec![0; len + 2];
                self.reader.read_exact(&mut bytes)?;
                bytes.truncate(len);
                Ok(Value::Text(bytes))
            }
            b'*' => {
                let Ok(len) = rest.parse::<usize>() else { return Ok(Value::Nil) };
                (0..len).map(|_| self.read()).collect::<Result<_>>().map(Value::Array)
            }
            _ => Err(String::from_utf8_lossy(&line).trim_end().into()),
        }
    }
}

/// What a reply must look like.
#[derive(Debug, Clone)]
pub enum Expect {
    Exactly(Vec<u8>),
    BeginsWith(Vec<u8>),
    EndsWith(Vec<u8>),
}

impl Expect {
    pub fn int(n: i64) -> Expect {
        Expect::Exactly(format!(":{n}\r\n").into())
    }

    pub fn ok() -> Expect {
        Expect::Exactly(b"+OK\r\n".to_vec())
    }

    pub fn array(len: usize) -> Expect {
        Expect::BeginsWith(format!("*{len}\r\n").into())
    }

    pub fn ends(text: &str) -> Expect {
        Expect::EndsWith(format!("${}\r\n{text}\r\n", text.len()).into())
    }

    pub fn check(&self, reply: &[u8]) -> Result<()> {
        let met = match self {
            Expect::Exactly(bytes) => reply == bytes,
            Expect::BeginsWith(bytes) => reply.starts_with(bytes),
            Expect::EndsWith(bytes) => reply.ends_with(bytes),
        };
        if met {
            return Ok(());
        }
        let shown = &reply[..reply.len().min(200)];
        Err(format!("unexpected reply {:?}, not {self:?}", String::from_utf8_lossy(shown)).into())
    }
}

/// Finds where a reply ends, however little of it has come so far. An error anywhere in it is an
/// error.
#[derive(Default)]
pub struct Skipper {
    /// Elements still to come; 0 between replies.
    pending: usize,
}

impl Skipper {
    /// Looks on from `pos`. True when the reply is complete; `pos` is then behind it.
    pub fn skip(&mut self, buf: &[u8], pos: &mut usize) -> Result<bool> {
        if self.pending == 0 {
            self.pending = 1;
        }
        while self.pending > 0 {
            let Some(line) = line_at(buf, *pos) else { return Ok(false) };
            let after = *pos + line.len() + 2;
            let end = match line.first() {
                Some(b'-') => return Err(String::from_utf8_lossy(line).into()),
                Some(b'$') if line != b"$-1" => after + number(line)? + 2,
                Some(b'*') if line != b"*-1" => {
                    self.pending += number(line)?;
                    after
                }
                Some(b':' | b'+' | b'$' | b'*' | b'_') => after,
                _ => return Err(format!("not RESP2: {:?}", String::from_utf8_lossy(line)).into()),
            };
            if end > buf.len() {
                return Ok(false);
            }
            *pos = end;
            self.pending -= 1;
        }
        Ok(true)
    }
}

fn line_at(buf: &[u8], pos: usize) -> Option<&[u8]> {
    let rest = &buf[pos..];
    let end = rest.iter().position(|b| *b == b'\r')?;
    (rest.get(end + 1) == Some(&b'\n')).then_some(&rest[..end])
}

fn number(line: &[u8]) -> Result<usize> {
    Ok(std::str::from_utf8(&line[1..])?.parse()?)
}
