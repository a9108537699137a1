//! The edge to the server: the only place that knows its interface, and the only `unsafe`.
//!
//! Everything here runs on the server's main thread but for what the server frees or saves
//! elsewhere (`datatype::free`, `rdb_save` in the fork); what is shared with those is atomic.
//!
//! # Rules behind the `unsafe` code
//!
//! The SAFETY comments rely on these rules of the server's interface and do not repeat them:
//!
//! - The pointers to the server's functions are written once, when the module begins to load, before
//!   any other code of the module runs. Each read of them is therefore free of races.
//! - What the server passes to a callback (the context, keys, strings, event data) stays valid and
//!   unchanged until the callback returns. A `Context` is not used after that, but for the detached
//!   one that `key_moves` keeps.
//! - The server calls no command, timer or event handler while another one of them runs, except where
//!   the module itself calls the server.

// Reads an API pointer and calls it. `init::offers_what_is_needed` checks the pointers that not all
// servers have, or `offers!` does before the call. The caller's `unsafe` block says why the
// arguments are valid for that function.
macro_rules! api {
    ($name:ident($($arg:expr_2021),* $(,)?)) => {
        match redis_module::raw::$name {
            Some(function) => function($($arg),*),
            None => $crate::server::missing(stringify!($name)),
        }
    };
}

/// Whether the server offers a function of its interface.
macro_rules! offers {
    ($name:ident) => {{
        // SAFETY: the pointers are written once, when the module begins to load.
        let function = unsafe { redis_module::raw::$name };
        function.is_some()
    }};
}

pub mod blocking;
pub mod expiry;
pub mod ffi;
pub mod keyspace;
pub mod module;
pub mod propagate;

/// A function of the interface is called that the server does not have. `init` refuses to load
/// the module where one that is needed is missing, so nobody gets here.
#[cold]
fn missing(name: &str) -> ! {
    eprintln!("presence: the server does not offer {name}");
    std::process::abort()
}
