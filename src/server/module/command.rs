//! Commands: how they are described to the server, and how a call of it reaches their code.

use crate::server::ffi::args::Arg;
use crate::server::ffi::context::Context;
use crate::server::ffi::error::Outcome;
use crate::server::module::call::Call;
use redis_module::raw;
use std::ffi::{CString, c_int};
use std::ptr;

/// A command: what `COMMAND DOCS` and `COMMAND INFO` tell of it, and its code.
pub trait Command {
    const SPEC: Spec;
    fn run(call: &Call) -> Outcome;
}

/// What a command does with its key.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Access {
    Reads,
    /// Reads several: what stands behind this word is half keys, half something else.
    ReadsAfter(&'static str),
    /// Changes what is at the key, or makes it.
    Updates,
    /// Takes something away from what is at the key.
    Deletes,
    /// Has no key.
    NoKey,
    /// Has no key, and reads what belongs to a database.
    ReadsNoKey,
    /// Has no key, and changes what belongs to a database.
    WritesNoKey,
}

impl Access {
    /// As a flag of the server.
    fn flag(self) -> &'static str {
        match self {
            Access::Reads | Access::ReadsNoKey => "readonly",
            // Redis 7.0 checks the slots and rights of such keys only if the command says where they are.
            Access::ReadsAfter(_) => "readonly getkeys-api",
            Access::Updates | Access::Deletes | Access::WritesNoKey => "write",
            Access::NoKey => "",
        }
    }

    /// As an ACL category.
    fn category(self) -> &'static str {
        match self {
            Access::Reads | Access::ReadsAfter(_) | Access::ReadsNoKey => "read",
            Access::Updates | Access::Deletes | Access::WritesNoKey => "write",
            Access::NoKey => "",
        }
    }
}

/// A command that only contains others, as `CONFIG` contains `CONFIG GET`. The server answers unknown
/// subcommands; `HELP` is one of its own.
pub trait Container {
    /// Without flags, categories and arguments: each subcommand has its own.
    const SPEC: Spec;
    const SUBCOMMANDS: &'static [Subcommand];
}

/// A subcommand, for [`Container::SUBCOMMANDS`].
pub struct Subcommand {
    spec: &'static Spec,
    entry: raw::RedisModuleCmdFunc,
}

/// A subcommand: the name in its [`Spec`] is that behind the container's.
pub const fn subcommand<C: Command>() -> Subcommand {
    Subcommand { spec: &C::SPEC, entry: Some(entry::<C, 1>) }
}

pub struct Spec {
    pub name: &'static str,
    pub summary: &'static str,
    pub complexity: &'static str,
    pub since: &'static str,
    /// As in `COMMAND INFO`: with the name; negative is "at least".
    pub arity: i32,
    pub access: Access,
    /// Flags beside `write` or `readonly`.
    pub flags: &'static str,
    /// ACL categories beside `write` or `read`.
    pub categories: &'static str,
    /// Command tips, separated by spaces: they tell clients how to use it in a cluster.
    pub tips: &'static str,
    pub args: &'static [ArgSpec],
}

impl Spec {
    fn has_key(&self) -> bool {
        matches!(self.access, Access::Reads | Access::Updates | Access::Deletes)
    }

    /// The flags as the server takes them.
    fn flags(&self) -> CString {
        c_string(format!("{} {}", self.access.flag(), self.flags).trim())
    }
}

/// An argument, for `COMMAND DOCS`.
pub struct ArgSpec {
    pub name: &'static str,
    pub kind: ArgKind,
    pub token: Option<&'static str>,
    pub optional: bool,
    pub multiple: bool,
}

pub enum ArgKind {
    Key,
    String,
    Integer,
    UnixTime,
    /// A word that stands for itself.
    Word,
    OneOf(&'static [ArgSpec]),
    Block(&'static [ArgSpec]),
}

impl ArgSpec {
    pub const fn new(name: &'static str, kind: ArgKind) -> Self {
        ArgSpec { name, kind, token: None, optional: false, multiple: false }
    }

    /// A word, as a pure token.
    pub const fn word(name: &'static str, token: &'static str) -> Self {
        ArgSpec { token: Some(token), ..ArgSpec::new(name, ArgKind::Word) }
    }

    pub const fn after(self, token: &'static str) -> Self {
        ArgSpec { token: Some(token), ..self }
    }

    pub const fn optional(self) -> Self {
        ArgSpec { optional: true, ..self }
    }

    pub const fn multiple(self) -> Self {
        ArgSpec { multiple: true, ..self }
    }

    /// How it is written in the text of `HELP`.
    fn usage(&self) -> String {
        let all = |parts: &[ArgSpec], between: &str| {
            let parts: Vec<String> = parts.iter().map(ArgSpec::usage).collect();
            parts.join(between)
        };
        let value = match self.kind {
            ArgKind::Word => String::new(),
            ArgKind::OneOf(parts) => all(parts, "|"),
            ArgKind::Block(parts) => all(parts, " "),
            _ => format!("<{}>", self.name),
        };
        let text = format!("{} {value}", self.token.unwrap_or(""));
        let more = if self.multiple { " ..." } else { "" };
        let text = format!("{}{more}", text.trim());
        if self.optional { format!("[{text}]") } else { text }
    }
}

/// The key, as the first argument.
pub const SPACE: ArgSpec = ArgSpec::new("space", ArgKind::Key);
pub const USER: ArgSpec = ArgSpec::new("user", ArgKind::String);

/// The flags of a key that is read.
pub const READS_KEY: u32 = raw::REDISMODULE_CMD_KEY_RO | raw::REDISMODULE_CMD_KEY_ACCESS;

/// Registers a command and, where the server takes them, its description and ACL categories.
pub fn register<C: Command>(ctx: Context) -> bool {
    create(ctx, &C::SPEC, Some(entry::<C, 0>)).is_some()
}

/// The same for a container and its subcommands.
pub fn register_container<C: Container>(ctx: Context) -> bool {
    let Some(container) = create(ctx, &C::SPEC, None) else { return false };
    let help = Subcommand { spec: &HELP, entry: Some(help::<C>) };
    C::SUBCOMMANDS.iter().chain([&help]).all(|subcommand| {
        let spec = subcommand.spec;
        let flags = spec.flags();
        let key = c_int::from(spec.has_key());
        let name = c_string(spec.name);
        // SAFETY: called while the module loads, with a command of it; the server copies the strings.
        let created = unsafe {
            api!(RedisModule_CreateSubcommand(
                container,
                name.as_ptr(),
                subcommand.entry,
                flags.as_ptr(),
                key,
                key,
                key
            ))
        };
        let name = format!("{}|{}", C::SPEC.name, spec.name);
        created == raw::REDISMODULE_OK as c_int && finish(ctx, &name, spec).is_some()
    })
}

/// Creates a command; without `entry` it is a container.
fn create(
    ctx: Context,
    spec: &Spec,
    entry: raw::RedisModuleCmdFunc,
) -> Option<*mut raw::RedisModuleCommand> {
    let flags = spec.flags();
    let key = c_int::from(spec.has_key());
    let name = c_string(spec.name);
    // SAFETY: called while the module loads; the server copies the strings.
    let created = unsafe {
        api!(RedisModule_CreateCommand(
            ctx.raw(),
            name.as_ptr(),
            entry,
            flags.as_ptr(),
            key,
            key,
            key
        ))
    };
    (created == raw::REDISMODULE_OK as c_int).then(|| finish(ctx, spec.name, spec)).flatten()
}

/// Gives a command that was created its ACL categories and its description.
fn finish(ctx: Context, name: &str, spec: &Spec) -> Option<*mut raw::RedisModuleCommand> {
    let name = c_string(name);
    // SAFETY: called while the module loads; the name ends with NUL.
    let command = unsafe { api!(RedisModule_GetCommand(ctx.raw(), name.as_ptr())) };
    if command.is_null() {
        return None;
    }
    if offers!(RedisModule_SetCommandACLCategories) {
        let category = spec.access.category();
        let categories = c_string(format!("{category} {}", spec.categories).trim());
        // SAFETY: the command is one of this module, which loads; the text ends with NUL and is
        // only read. The pointer has been asked for.
        unsafe { api!(RedisModule_SetCommandACLCategories(command, categories.as_ptr())) };
    }
    // SAFETY: called while the module loads, with its command.
    unsafe { describe(command, spec) }.then_some(command)
}

const HELP: Spec = Spec {
    name: "help",
    summary: "Returns helpful text about the different subcommands.",
    complexity: "O(1)",
    since: "0.2.0",
    arity: 2,
    access: Access::NoKey,
    flags: "allow-loading allow-stale",
    categories: "",
    tips: "",
    args: &[],
};

/// The text of `HELP`, as the server's own containers have it.
fn help_lines<C: Container>() -> Vec<String> {
    let container = C::SPEC.name.to_ascii_uppercase();
    let mut lines =
        vec![format!("{container} <subcommand> [<arg> [value] [opt] ...]. Subcommands are:")];
    for subcommand in C::SUBCOMMANDS {
        let spec = subcommand.spec;
        let args: Vec<String> = spec.args.iter().map(ArgSpec::usage).collect();
        lines.push(format!("{} {}", spec.name.to_ascii_uppercase(), args.join(" ")).trim().into());
        lines.push(format!("    {}", spec.summary));
    }
    lines.extend(["HELP".into(), "    Print this help.".into()]);
    lines
}

unsafe extern "C" fn help<C: Container>(
    ctx: *mut raw::RedisModuleCtx,
    _: *mut *mut raw::RedisModuleString,
    _: c_int,
) -> c_int {
    // SAFETY: the server passes the context of this command.
    let ctx = unsafe { Context::from_raw(ctx) };
    let lines = help_lines::<C>();
    ctx.reply_array(lines.len());
    lines.iter().for_each(|line| ctx.reply_status(line));
    raw::REDISMODULE_OK as c_int
}

/// From the server to the command's code. `SKIP` words stand before the command's own name: that of its
/// container.
unsafe extern "C" fn entry<C: Command, const SKIP: usize>(
    ctx: *mut raw::RedisModuleCtx,
    argv: *mut *mut raw::RedisModuleString,
    argc: c_int,
) -> c_int {
    // SAFETY: the server passes the context of this command.
    let ctx = unsafe { Context::from_raw(ctx) };
    let count = usize::try_from(argc).unwrap_or(0);
    if let Access::ReadsAfter(word) = C::SPEC.access
        && !argv.is_null()
        && ctx.is_asked_for_keys()
    {
        // SAFETY: `Arg` is a transparent pointer; the strings live through the call.
        let argv = unsafe { std::slice::from_raw_parts(argv.cast::<Arg<'_>>(), count) };
        ctx.tell_read_keys(keys_after(word, argv));
        return raw::REDISMODULE_OK as c_int;
    }
    let wanted = C::SPEC.arity.unsigned_abs() as usize;
    // Servers check the arity themselves once it is in the description; a reader of this code
    // should not have to know that.
    if argv.is_null() || count < wanted || (C::SPEC.arity > 0 && count > wanted) {
        ctx.reply_wrong_arity();
        return raw::REDISMODULE_OK as c_int;
    }
    // SAFETY: `Arg` is a transparent pointer; the strings live through the call.
    let argv = unsafe { std::slice::from_raw_parts(argv.cast::<Arg<'_>>(), count) };
    let argv = argv.get(SKIP..).unwrap_or_default();
    if let Err(error) = C::run(&Call::new(ctx, argv)) {
        ctx.reply_error(&error);
    }
    raw::REDISMODULE_OK as c_int
}

/// The positions of the keys of [`Access::ReadsAfter`]; none where the arguments do not fit.
fn keys_after(word: &str, argv: &[Arg<'_>]) -> std::ops::Range<usize> {
    let is_word = |arg: &Arg<'_>| arg.bytes().eq_ignore_ascii_case(word.as_bytes());
    let Some(at) = argv.iter().position(is_word) else { return 0..0 };
    let behind = argv.len() - at - 1;
    if behind.is_multiple_of(2) { at + 1..at + 1 + behind / 2 } else { 0..0 }
}

fn c_string(text: &str) -> CString {
    CString::new(text.trim_end()).unwrap_or_default()
}

/// A string for the server to copy. It is never freed: there are a few dozen, once.
fn leaked(text: &str) -> *const std::ffi::c_char {
    c_string(text).into_raw()
}

/// # Safety
/// Called while the module loads, with a command of it.
unsafe fn describe(command: *mut raw::RedisModuleCommand, spec: &Spec) -> bool {
    if !offers!(RedisModule_SetCommandInfo) {
        return true;
    }
    let version = raw::RedisModuleCommandInfoVersion {
        version: 1,
        sizeof_historyentry: size_of::<raw::RedisModuleCommandHistoryEntry>(),
        sizeof_keyspec: size_of::<raw::RedisModuleCommandKeySpec>(),
        sizeof_arg: size_of::<raw::RedisModuleCommandArg>(),
    };
    // SAFETY: all zeroes is a valid value, and ends the list.
    let mut key_specs: [raw::RedisModuleCommandKeySpec; 2] = unsafe { std::mem::zeroed() };
    let flags = match spec.access {
        Access::Reads | Access::ReadsAfter(_) => Some(READS_KEY),
        Access::Updates => Some(raw::REDISMODULE_CMD_KEY_RW | raw::REDISMODULE_CMD_KEY_UPDATE),
        Access::Deletes => Some(raw::REDISMODULE_CMD_KEY_RW | raw::REDISMODULE_CMD_KEY_DELETE),
        Access::NoKey | Access::ReadsNoKey | Access::WritesNoKey => None,
    };
    if let (Some(key), Some(flags)) = (key_specs.first_mut(), flags) {
        key.flags = u64::from(flags);
        key.begin_search_type = raw::RedisModuleKeySpecBeginSearchType_REDISMODULE_KSPEC_BS_INDEX;
        key.bs.index.pos = 1;
        key.find_keys_type = raw::RedisModuleKeySpecFindKeysType_REDISMODULE_KSPEC_FK_RANGE;
        key.fk.range.lastkey = 0;
        key.fk.range.keystep = 1;
        key.fk.range.limit = 0;
        if let Access::ReadsAfter(word) = spec.access {
            key.begin_search_type =
                raw::RedisModuleKeySpecBeginSearchType_REDISMODULE_KSPEC_BS_KEYWORD;
            key.bs.keyword.keyword = leaked(word);
            key.bs.keyword.startfrom = 1;
            // The first half of all that follows.
            key.fk.range.lastkey = -1;
            key.fk.range.limit = 2;
        }
    }
    // SAFETY: all zeroes is a valid value: nothing said.
    let mut info: raw::RedisModuleCommandInfo = unsafe { std::mem::zeroed() };
    // The server keeps no pointer into it, but one to the version, in some releases.
    info.version = Box::leak(Box::new(version));
    info.summary = leaked(spec.summary);
    info.complexity = leaked(spec.complexity);
    info.since = leaked(spec.since);
    if !spec.tips.is_empty() {
        info.tips = leaked(spec.tips);
    }
    info.arity = spec.arity;
    info.key_specs = key_specs.as_mut_ptr();
    info.args = arg_list(spec.args);
    // SAFETY: the caller guarantees that the command is one of the module, which loads. The texts end
    // with NUL and the lists with zeroes. The server copies them, and the version is never freed.
    let described = unsafe { api!(RedisModule_SetCommandInfo(command, &info)) };
    described == raw::REDISMODULE_OK as c_int
}

/// A list of arguments in the server's form, ended by zeroes.
fn arg_list(specs: &[ArgSpec]) -> *mut raw::RedisModuleCommandArg {
    let mut list: Vec<raw::RedisModuleCommandArg> = specs.iter().map(arg).collect();
    // SAFETY: all zeroes is a valid value: the end of the list.
    list.push(unsafe { std::mem::zeroed() });
    Box::leak(list.into_boxed_slice()).as_mut_ptr()
}

fn arg(spec: &ArgSpec) -> raw::RedisModuleCommandArg {
    use raw::*;
    let (kind, parts) = match spec.kind {
        ArgKind::Key => (RedisModuleCommandArgType_REDISMODULE_ARG_TYPE_KEY, None),
        ArgKind::String => (RedisModuleCommandArgType_REDISMODULE_ARG_TYPE_STRING, None),
        ArgKind::Integer => (RedisModuleCommandArgType_REDISMODULE_ARG_TYPE_INTEGER, None),
        ArgKind::UnixTime => (RedisModuleCommandArgType_REDISMODULE_ARG_TYPE_UNIX_TIME, None),
        ArgKind::Word => (RedisModuleCommandArgType_REDISMODULE_ARG_TYPE_PURE_TOKEN, None),
        ArgKind::OneOf(parts) => {
            (RedisModuleCommandArgType_REDISMODULE_ARG_TYPE_ONEOF, Some(parts))
        }
        ArgKind::Block(parts) => {
            (RedisModuleCommandArgType_REDISMODULE_ARG_TYPE_BLOCK, Some(parts))
        }
    };
    let mut flags = 0;
    if spec.optional {
        flags |= REDISMODULE_CMD_ARG_OPTIONAL;
    }
    if spec.multiple {
        flags |= REDISMODULE_CMD_ARG_MULTIPLE;
    }
    // SAFETY: all zeroes is a valid value: nothing said.
    let mut arg: RedisModuleCommandArg = unsafe { std::mem::zeroed() };
    arg.name = leaked(spec.name);
    arg.type_ = kind;
    arg.key_spec_index = if matches!(spec.kind, ArgKind::Key) { 0 } else { -1 };
    arg.token = spec.token.map_or(ptr::null(), leaked);
    arg.flags = flags as c_int;
    arg.subargs = parts.map_or(ptr::null_mut(), arg_list);
    arg
}
