//! What the commands and flags are.
#![allow(clippy::expect_used, reason = "tests")]

use clap::{CommandFactory as _, Parser};
use skerry_cli::{Command, Options};

#[derive(Debug, Parser)]
#[command(name = "skerry")]
struct Arguments {
    #[command(flatten)]
    options: Options,

    #[command(subcommand)]
    command: Command,
}

fn help(command: &mut clap::Command, path: &str, text: &mut String) {
    text.push_str(&format!("# {path}\n{}\n", command.render_help()));
    let names: Vec<String> =
        command.get_subcommands().map(|sub| sub.get_name().to_owned()).collect();
    for name in names.iter().filter(|name| *name != "help") {
        let sub = command.find_subcommand_mut(name).expect("listed");
        help(sub, &format!("{path} {name}"), text);
    }
}

#[test]
fn the_help_texts() {
    let mut command = Arguments::command().term_width(100);
    command.build();
    let mut text = String::new();
    help(&mut command, "skerry", &mut text);
    insta::assert_snapshot!(text);
}

#[test]
fn clap_finds_nothing_wrong_with_the_definitions() {
    Arguments::command().debug_assert();
}

fn parsed(line: &str) -> String {
    match Arguments::try_parse_from(line.split(' ')) {
        Ok(arguments) => format!("{:?}", arguments.command),
        Err(error) => error.to_string(),
    }
}

#[test]
fn command_lines_are_read_as_they_are_meant() {
    let mut text = String::new();
    for line in [
        "skerry create box --vcpu 2 --memory 2G --disk 512M -e A=1 -e PATH --no-start",
        "skerry create box --memory lots",
        "skerry create box --env 1A=x",
        "skerry create box --no-start --wait 5",
        "skerry exec box -u developer --timeout 5 -- ls -l --json",
        "skerry exec box ls",
        "skerry exec box -t --json -- ls",
        "skerry shell box",
        "skerry cp a.txt box:/tmp/",
        "skerry cp box:relative .",
        "skerry cp ./a:b box:/x",
        "skerry logs box --source commands --tail 1M",
        "skerry rm -f a b --no-wait",
        "skerry stop box --wait 601",
        "skerry create box --ttl 90m --ttl-action delete --idle 10m --restart on-failure --auto-resume",
        "skerry create box --ttl-action delete",
        "skerry create box --from-snapshot s --image base",
        "skerry snapshot create box --name before --disk-only",
        "skerry fork box -c 3 --name branch --keep-snapshot point",
        "skerry fork box -c 257",
        "skerry restore box before --start --no-wait",
        "skerry lifecycle box",
        "skerry lifecycle box --no-ttl --idle 1h --auto-resume true",
        "skerry renew box --by 1h --for 2h",
        "skerry create box -v data:/srv -v models:/models:ro",
        "skerry create box --volume data",
        "skerry volume create data --size 10G --no-wait",
        "skerry volume create data",
        "skerry volume attach box data:/srv:ro",
        "skerry volume attach box data@latest:/srv",
        "skerry volume checkpoint create data --name before --no-wait",
        "skerry volume checkpoint rm data",
        "skerry volume detach box",
        "skerry net set box",
        "skerry net link a b -p 80 -p 443",
        "skerry net allow box",
    ] {
        text.push_str(&format!("> {line}\n{}\n\n", parsed(line)));
    }
    insta::assert_snapshot!(text);
}

#[test]
fn a_key_on_the_command_line_is_never_printed() {
    let line = ["skerry", "--key", "sk_secret", "login", "http://x", "sk_secret"];
    let arguments = Arguments::try_parse_from(line).expect("parsed");
    assert!(!format!("{arguments:?}").contains("sk_secret"));
}
