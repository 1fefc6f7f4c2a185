//! `check-config`: what a configuration means here, key by key.

use std::io::Write;

use crate::config::keys::{Key, TABLE, Treatment, find, known_as};
use crate::config::{Config, Invalid, Loaded, Member, Setting, Verdict};
use crate::net::peer::Secret;

use super::args::CheckArguments;
use super::say;

/// Reports what is followed, accepted, without effect and refused. The exit code is 1 if a server
/// would refuse the configuration.
pub fn run(
    arguments: &CheckArguments,
    loaded: Result<Loaded, Invalid>,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> u8 {
    let name = arguments.target.words.join(" ");
    let explain = arguments.explain;
    match loaded {
        Ok(Loaded {
            config,
            settings,
            warnings,
            notes,
        }) => {
            let mut text = format!("{name}: valid\n\nIn effect:\n");
            for key in TABLE {
                if let Treatment::Honoured { show, .. } = key.treatment {
                    let origin = origin(&settings, key.name);
                    let value = show(&config);
                    text += &format!("  {:<40} {value:<24} {origin}\n", key.name);
                    text += &meaning(key, explain);
                }
            }
            let peers = config.quorum.as_ref().map_or(String::new(), |listen| {
                format!(", other servers at {listen}")
            });
            let server = format!(
                "server number {}, clients at {}{peers}",
                config.server_id, config.client
            );
            text += &format!("  {server}\n");
            text += &members(&config);
            text += &others(&settings, explain);
            text += &list(
                "Warnings",
                warnings.into_iter().chain(secret(&config)).collect(),
            );
            text += &list("Notes", notes);
            say(out, &text);
            0
        }
        Err(Invalid {
            problems,
            settings,
            warnings,
        }) => {
            let text = others(&settings, explain) + &list("Warnings", warnings);
            say(out, &format!("{name}: refused\n{text}"));
            let lines = problems
                .iter()
                .map(|problem| format!("{}: {}\n", problem.place, problem.message));
            say(err, &lines.collect::<String>());
            1
        }
    }
}

/// The servers as /zookeeper/config will have them.
fn members(config: &Config) -> String {
    if config.quorum.is_none() {
        return String::new();
    }
    let line = |member: &Member| {
        let here = match member.id == config.server_id {
            true => "  (this server)",
            false => "",
        };
        format!("{}{here}", member.line())
    };
    list("Members", config.members.iter().map(line).collect())
}

/// The settings that change nothing, by reason.
fn others(settings: &[Setting], explain: bool) -> String {
    let groups = [
        (
            "Accepted, of no use to a single server",
            Verdict::BetweenServers,
        ),
        ("Accepted, without effect here", Verdict::Meaningless),
        ("Accepted, off as it always is here", Verdict::Off),
        ("Unknown, ignored", Verdict::Unknown),
    ];
    groups
        .into_iter()
        .map(|(title, verdict)| {
            let of_group = settings.iter().filter(|setting| setting.verdict == verdict);
            let shown = |setting: &Setting| {
                let given = &setting.given;
                let shown = crate::config::shown(&given.key, &given.value);
                let meaning = find(known_as(&given.key)).map(|key| meaning(key, explain));
                let meaning = meaning.unwrap_or_default();
                format!("{shown} ({})\n{meaning}", given.origin)
                    .trim_end()
                    .to_owned()
            };
            list(title, of_group.map(shown).collect())
        })
        .collect()
}

/// A line of what a key means, if that is asked for.
fn meaning(key: &Key, explain: bool) -> String {
    match explain {
        true => format!("      {}.\n", key.doc),
        false => String::new(),
    }
}

/// Files that the configuration names are the server's; it may be checked where they are not.
fn secret(config: &Config) -> Option<String> {
    let error = Secret::read(config.cluster_secret_file.as_deref()?).err()?;
    Some(format!(
        "clusterSecretFile: a server would not start: {error}"
    ))
}

fn list(title: &str, lines: Vec<String>) -> String {
    if lines.is_empty() {
        return String::new();
    }
    format!("\n{title}:\n  {}\n", lines.join("\n  "))
}

fn origin(settings: &[Setting], name: &str) -> String {
    let matches = |setting: &&Setting| known_as(&setting.given.key) == name;
    let setting = settings.iter().find(matches);
    setting.map_or("default".to_owned(), |setting| {
        setting.given.origin.to_string()
    })
}
