//! The edge to the server: the only place that knows its interface, and the only `unsafe`.
//!
//! Everything here runs on the server's main thread but for what the server frees or saves
//! elsewhere (`datatype::free`, `rdb_save` in the fork); what is shared with those is atomic.

// Reads an API pointer and calls it. Every pointer used this way is in `REQUIRED` or is asked
// for first with `offers!`.
macro_rules! api {
    ($name:ident($($arg:expr),* $(,)?)) => {
        match redis_module::raw::$name {
            Some(function) => function($($arg),*),
            None => $crate::server::missing(stringify!($name)),
        }
    };
}

/// Whether the server offers a function of its interface.
macro_rules! offers {
    ($name:ident) => {{
        // SAFETY: the pointers are written once, while the module loads, on this thread.
        #[allow(unused_unsafe)]
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
