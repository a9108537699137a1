//! From what happened to those who must receive it: replicas, the AOF, subscribers.

pub mod change_set;
pub mod channels;
pub mod feed;
pub mod propagation_targets;
