//! The words of commands.

/// The words of a command: a `&str` is split at white space; lists are taken word by word.
pub trait Args {
    fn args(self) -> Vec<Vec<u8>>;
}

impl Args for &str {
    fn args(self) -> Vec<Vec<u8>> {
        self.split_whitespace().map(|w| w.into()).collect()
    }
}
impl Args for &String {
    fn args(self) -> Vec<Vec<u8>> {
        self.as_str().args()
    }
}
impl Args for String {
    fn args(self) -> Vec<Vec<u8>> {
        self.as_str().args()
    }
}
impl<T: AsRef<[u8]>> Args for &[T] {
    fn args(self) -> Vec<Vec<u8>> {
        self.iter().map(|w| w.as_ref().to_vec()).collect()
    }
}
impl<T: AsRef<[u8]>, const N: usize> Args for [T; N] {
    fn args(self) -> Vec<Vec<u8>> {
        self[..].args()
    }
}
impl<T: AsRef<[u8]>, const N: usize> Args for &[T; N] {
    fn args(self) -> Vec<Vec<u8>> {
        self[..].args()
    }
}
impl<T: AsRef<[u8]>> Args for Vec<T> {
    fn args(self) -> Vec<Vec<u8>> {
        self[..].args()
    }
}
impl<T: AsRef<[u8]>> Args for &Vec<T> {
    fn args(self) -> Vec<Vec<u8>> {
        self[..].args()
    }
}

/// A word of a command, for `args!`.
pub trait Arg {
    fn arg(&self) -> Vec<u8>;
}
macro_rules! arg_by {
    ($($ty:ty => $with:expr_2021),* $(,)?) => {
        $(impl Arg for $ty { fn arg(&self) -> Vec<u8> { #[allow(clippy::redundant_closure_call)] ($with)(self) } })*
    };
}
arg_by! {
    str => |s: &str| s.as_bytes().to_vec(),
    String => |s: &String| s.as_bytes().to_vec(),
    [u8] => |s: &[u8]| s.to_vec(),
    Vec<u8> => |s: &Vec<u8>| s.clone(),
    i64 => |n: &i64| n.to_string().into_bytes(),
    i32 => |n: &i32| n.to_string().into_bytes(),
    u64 => |n: &u64| n.to_string().into_bytes(),
    usize => |n: &usize| n.to_string().into_bytes(),
}
impl<const N: usize> Arg for [u8; N] {
    fn arg(&self) -> Vec<u8> {
        self.to_vec()
    }
}
impl<T: Arg + ?Sized> Arg for &T {
    fn arg(&self) -> Vec<u8> {
        (**self).arg()
    }
}

/// The words of a command, of mixed kinds: text, bytes, numbers. None is split.
#[macro_export]
macro_rules! args {
    ($($arg:expr_2021),* $(,)?) => { vec![$($crate::Arg::arg(&$arg)),*] };
}

/// A command for a message: words escaped and cut.
pub fn show(args: &[Vec<u8>]) -> String {
    const SHOWN: usize = 30;
    let word = |w: &Vec<u8>| {
        let cut = if w.len() > 60 { format!("… ({} bytes)", w.len()) } else { String::new() };
        w[..w.len().min(60)].escape_ascii().to_string() + &cut
    };
    let more = args.len().saturating_sub(SHOWN);
    let more = (more > 0).then(|| format!("… ({more} more)"));
    args.iter().take(SHOWN).map(word).chain(more).collect::<Vec<_>>().join(" ")
}
