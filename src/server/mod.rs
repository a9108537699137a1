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

pub mod alloc;
pub mod args;
pub mod blocked_clients;
pub mod call;
pub mod change_set;
pub mod clock;
pub mod command;
pub mod config;
pub mod context;
pub mod core_commands;
pub mod datatype;
pub mod error;
pub mod events;
pub mod expiry_queue;
pub mod info;
pub mod init;
pub mod key;
pub mod key_moves;
pub mod prefetch;
pub mod prefetch_cache;
pub mod propagation_targets;
pub mod queue_repair;
pub mod stats;
pub mod sweep;

/// A function of the interface is called that the server does not have. `load` refuses to load
/// the module where one that is needed is missing, so nobody gets here.
#[cold]
fn missing(name: &str) -> ! {
    eprintln!("presence: the server does not offer {name}");
    std::process::abort()
}
