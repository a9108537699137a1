//! The module in real servers, black box. See `harness` for how a test looks.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a panic fails the test and names the line"
)]

// A helper that only some files use is no dead code.
#[allow(dead_code)]
mod harness;

mod adversarial;
mod backlog;
mod bad_input;
mod bonds;
mod bounds;
mod cluster;
mod commands;
mod digests;
mod events;
mod examples;
mod failover;
mod feed;
mod follow;
mod harness_test;
mod history;
mod introspection;
mod key_lifecycle;
mod leases;
mod lines;
mod main_thread;
mod manual;
mod manual_commands;
mod manual_settings;
mod memory;
mod messages;
mod moves;
mod owned_sessions;
mod owner_commands;
mod owner_sessions;
mod partitions;
mod persistence;
mod propagation_targets;
mod quickstart;
mod read;
mod renamed;
mod replication;
mod replication_traffic;
mod replies;
mod rules;
mod scripts;
mod seen;
mod space_json;
mod spaces;
mod transactions;
mod transcript;
mod user_channels;
