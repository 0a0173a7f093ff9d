//! The commands a simulated guest knows, and the little of a shell it understands.

use skerry_internal_api::{ExecControl, ExecExit, ExecRequest, User};
use tokio::sync::mpsc;

use super::{HOME, SimCommand, SimGuest, normal};

impl SimGuest {
    /// What the command line does; `None` when there is no such command.
    pub(super) fn run(
        &self,
        argv: &[String],
        request: &ExecRequest,
        stdin: &[u8],
    ) -> Option<SimCommand> {
        let line = argv.join(" ");
        let known = |words: &str| self.inner().programs.get(words).cloned();
        if let Some(programmed) = known(&line).or_else(|| known(argv.first()?)) {
            return Some(programmed);
        }
        let out =
            |text: String| Some(SimCommand { stdout: text.into_bytes(), ..SimCommand::default() });
        let words: Vec<&str> = argv.iter().map(String::as_str).collect();
        match words.as_slice() {
            ["true"] => out(String::new()),
            ["false"] => Some(SimCommand { code: 1, ..SimCommand::default() }),
            ["echo", rest @ ..] => out(format!("{}\n", rest.join(" "))),
            ["printf", text] => out((*text).replace("\\n", "\n")),
            ["pwd"] => out(format!("{}\n", request.working_dir.as_deref().unwrap_or(HOME))),
            ["whoami"] => out(match &request.user {
                User::Root | User::OfImage => "root\n".to_owned(),
                User::Named(name) => format!("{name}\n"),
            }),
            ["hostname"] => out(format!("{}\n", self.inner().hostname)),
            ["uname", ..] => {
                out(format!("Linux {} 6.1.0-simulated x86_64 GNU/Linux\n", self.inner().hostname))
            }
            ["env"] => {
                let mut env = self.inner().env.clone();
                env.extend(request.env.clone());
                let lines = env.iter().map(|(key, value)| format!("{key}={value}\n"));
                out(lines.collect())
            }
            ["cat"] => Some(SimCommand { stdout: stdin.to_vec(), ..SimCommand::default() }),
            // A terminal in which somebody types shows what is typed.
            ["/bin/bash", "-l"] if request.pty.is_some() => {
                Some(SimCommand { stdout: stdin.to_vec(), ..SimCommand::default() })
            }
            ["cat", paths @ ..] => Some(self.cat(paths, request)),
            ["sleep", _] => out(String::new()),
            ["sh" | "bash" | "/bin/sh" | "/bin/bash", "-c" | "-lc", script, ..] => {
                Some(self.script(script, request, stdin))
            }
            _ => None,
        }
    }

    fn cat(&self, paths: &[&str], request: &ExecRequest) -> SimCommand {
        let mut done = SimCommand::default();
        for path in paths {
            let base = request.working_dir.as_deref().unwrap_or(HOME);
            let full =
                if path.starts_with('/') { (*path).to_owned() } else { format!("{base}/{path}") };
            match normal(&full).ok().and_then(|full| self.file(&full)) {
                Some(content) => done.stdout.extend(content),
                None => {
                    let line = format!("cat: {path}: No such file or directory\n");
                    done.stderr.extend(line.into_bytes());
                    done.code = 1;
                }
            }
        }
        done
    }

    /// A list of simple commands with `;`, `&&`, `||` and new lines between them.
    fn script(&self, script: &str, request: &ExecRequest, stdin: &[u8]) -> SimCommand {
        let mut all = SimCommand::default();
        let mut runs = true;
        for (words, joint) in parse_script(script) {
            if runs && let Some((command, rest)) = words.split_first() {
                if command == "exit" {
                    all.code = rest.first().and_then(|code| code.parse().ok()).unwrap_or(all.code);
                    return all;
                }
                let to_stderr = words.last().is_some_and(|word| word == ">&2");
                let argv = if to_stderr { &words[..words.len() - 1] } else { &words[..] };
                let one = self.run(argv, request, stdin).unwrap_or_else(|| SimCommand {
                    stderr: format!("sh: 1: {command}: not found\n").into_bytes(),
                    code: 127,
                    ..SimCommand::default()
                });
                let SimCommand { stdout, stderr, code } = one;
                all.stderr.extend(stderr);
                if to_stderr { &mut all.stderr } else { &mut all.stdout }.extend(stdout);
                all.code = code;
            }
            runs = match joint {
                Joint::Then => true,
                Joint::And => all.code == 0,
                Joint::Or => all.code != 0,
            };
        }
        all
    }
}

#[derive(Clone, Copy)]
enum Joint {
    Then,
    And,
    Or,
}

fn parse_script(script: &str) -> Vec<(Vec<String>, Joint)> {
    let mut commands = Vec::new();
    let mut words: Vec<String> = Vec::new();
    let mut word: Option<String> = None;
    let mut chars = script.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\'' | '"' => {
                let text = word.get_or_insert_default();
                text.extend(chars.by_ref().take_while(|inner| *inner != c));
            }
            ' ' | '\t' => words.extend(word.take()),
            ';' | '\n' => {
                words.extend(word.take());
                commands.push((std::mem::take(&mut words), Joint::Then));
            }
            '&' | '|' if chars.peek() == Some(&c) => {
                chars.next();
                words.extend(word.take());
                let joint = if c == '&' { Joint::And } else { Joint::Or };
                commands.push((std::mem::take(&mut words), joint));
            }
            other => word.get_or_insert_default().push(other),
        }
    }
    words.extend(word);
    commands.push((words, Joint::Then));
    commands
}

/// A command that runs until it is told otherwise.
pub(super) async fn wait_for_signal(
    from_caller: &mut mpsc::Receiver<ExecControl>,
    timeout: Option<std::time::Duration>,
) -> ExecExit {
    let signalled = async {
        loop {
            match from_caller.recv().await {
                Some(ExecControl::Signal(number)) => return ExecExit::Signal(number),
                Some(ExecControl::Stdin(_) | ExecControl::CloseStdin | ExecControl::Resize(_)) => {}
                None => return ExecExit::Signal(1),
            }
        }
    };
    match timeout {
        Some(timeout) => {
            tokio::time::timeout(timeout, signalled).await.unwrap_or(ExecExit::TimedOut)
        }
        None => signalled.await,
    }
}
