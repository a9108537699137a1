//! The module in real servers, black box. See `harness` for how a test looks.

// A helper that only some files use is no dead code.
#[allow(dead_code)]
mod harness;
mod proxy;

mod backlog;
mod bad_input;
mod cluster;
mod commands;
mod cuts;
mod docs;
mod events;
mod examples;
mod failover;
mod follow;
mod harness_test;
mod history;
mod hostile;
mod keylife;
mod leases;
mod lines;
mod listeners;
mod main_thread;
mod memory;
mod messages;
mod moves;
mod persistence;
mod renamed;
mod replication;
mod replies;
mod scripts;
mod stream;
mod tour;
mod transactions;
