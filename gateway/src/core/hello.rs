//! What a client asks for by the address that it connects to.

use percent_encoding::percent_decode_str;

pub const MAX_SPACE: usize = 512;
pub const MAX_IDENTITY: usize = 512;
pub const MAX_ID: usize = 128;
pub const MAX_USERNAME: usize = 256;
pub const MAX_STATUS: usize = 256;

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Hello {
    pub space: String,
    pub identity: String,
    pub username: String,
    pub status: String,
    /// The former id, whose session the client wants to continue.
    pub id: Option<String>,
    /// The proof that the id is this client's.
    pub token: Option<String>,
    /// The client wants every event of the space, and not only joins and leaves.
    pub events: bool,
}

impl Hello {
    /// `/space?identity=…`. An error is a text for the client.
    pub fn parse(path: &str, query: &str) -> Result<Hello, String> {
        let mut hello = Hello {
            space: decode("space", path.strip_prefix('/').unwrap_or(path))?,
            ..Hello::default()
        };
        let mut seen = Vec::new();
        for pair in query.split('&') {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            // If a name is there twice, the first one counts.
            if seen.contains(&name) {
                continue;
            }
            seen.push(name);
            let value = || decode(name, &value.replace('+', " "));
            match name {
                "identity" => hello.identity = value()?,
                "username" => hello.username = value()?,
                "status" => hello.status = value()?,
                "id" => hello.id = Some(value()?).filter(|id| !id.is_empty()),
                "token" => hello.token = Some(value()?).filter(|token| !token.is_empty()),
                "events" => hello.events = value()? == "1",
                _ => {}
            }
        }
        check_length("space", &hello.space, 1, MAX_SPACE)?;
        check_length("identity", &hello.identity, 1, MAX_IDENTITY)?;
        check_length("username", &hello.username, 0, MAX_USERNAME)?;
        check_length("status", &hello.status, 0, MAX_STATUS)?;
        check_length("id", hello.id.as_deref().unwrap_or("-"), 1, MAX_ID)?;
        check_length("token", hello.token.as_deref().unwrap_or("-"), 1, MAX_ID)?;
        if hello.id.as_ref().is_some_and(|id| id.contains('/')) {
            return Err("id contains a slash".into());
        }
        Ok(hello)
    }
}

fn decode(name: &str, text: &str) -> Result<String, String> {
    let decoded = percent_decode_str(text).decode_utf8();
    decoded.map(|text| text.into_owned()).map_err(|_| format!("{name} is not UTF-8 text"))
}

pub fn check_length(name: &str, text: &str, min: usize, max: usize) -> Result<(), String> {
    match text.len() {
        n if n < min => Err(format!("{name} is missing")),
        n if n > max => Err(format!("{name} is longer than {max} bytes")),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello(path: &str, query: &str) -> Hello {
        Hello::parse(path, query).unwrap()
    }

    #[test]
    fn addresses() {
        let h = hello("/lobby", "identity=a%40b.c&username=Al+B&id=x-1&token=t&events=1");
        assert_eq!((&*h.space, &*h.identity, &*h.username), ("lobby", "a@b.c", "Al B"));
        assert_eq!((h.id.as_deref(), h.token.as_deref(), h.events), (Some("x-1"), Some("t"), true));
        let h = hello("/a/b%2Fc%20*|", "identity=%F0%9F%98%80&id=&events=0");
        assert_eq!((&*h.space, &*h.identity), ("a/b/c *|", "\u{1F600}"));
        assert_eq!((h.id, h.events), (None, false));
        assert_eq!(hello("/s", "identity=first&identity=second").identity, "first");
        assert_eq!(hello("/s+t", "identity=a=b").identity, "a=b");
        assert_eq!(hello("/s+t", "identity=a").space, "s+t");
    }

    #[test]
    fn bad_addresses() {
        let long = |n| format!("identity={}", "x".repeat(n));
        assert!(Hello::parse("/s", &long(512)).is_ok());
        for (path, query, why) in [
            ("/s", "", "identity is missing"),
            ("/s", "identity=", "identity is missing"),
            ("/", "identity=a", "space is missing"),
            ("/s", &long(513), "identity is longer than 512 bytes"),
            ("/s", "identity=%FF", "identity is not UTF-8 text"),
            ("/%FF", "identity=a", "space is not UTF-8 text"),
            ("/s", "identity=a&id=b%2Fc", "id contains a slash"),
        ] {
            assert_eq!(Hello::parse(path, query).unwrap_err(), why);
        }
    }
}
