//! The module: its registration, commands, configuration, statistics, INFO, and server events.

pub mod call;
pub mod command;
pub mod config;
pub mod core_commands;
pub mod events;
pub mod info;
pub mod init;
pub mod space_settings;
pub mod stats;
mod text_setting;
