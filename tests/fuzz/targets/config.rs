//! `zoo.cfg`: a configuration whose values hold together, or problems that say where.

use zkraft::config::{Config, Invalid, Loaded, properties, shown};

const NAME: &str = "zoo.cfg";

/// Input: the file.
pub fn run(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data) {
        check_lines(text);
    }
    if names_a_file(data) {
        return;
    }
    // In memory, so that no file is looked at.
    match Loaded::text(NAME, data, &[], true) {
        Ok(loaded) => check(&loaded.config),
        Err(invalid) => {
            let lines = data.iter().filter(|byte| b"\n\r".contains(byte)).count() + 1;
            check_problems(&invalid, lines);
        }
    }
}

/// A property starts at the line that it is said to: the text from there on starts with it.
fn check_lines(text: &str) {
    let text = text.replace("\r\n", "\n").replace('\r', "\n");
    let lines: Vec<&str> = text.split('\n').collect();
    let (all, _) = properties::parse(&text);
    // A few are enough, and long files would cost their square.
    for property in all.iter().take(8) {
        let from = lines[property.line - 1..].join("\n");
        let (again, _) = properties::parse(&from);
        let first = again
            .first()
            .map(|first| (&first.key, &first.value, first.line));
        assert_eq!(first, Some((&property.key, &property.value, 1)));
    }
}

/// The one key that makes a file be read.
fn names_a_file(data: &[u8]) -> bool {
    let text = String::from_utf8_lossy(data);
    let (properties, _) = properties::parse(text.trim_start_matches('\u{feff}'));
    properties
        .iter()
        .any(|property| property.key.ends_with("dynamicConfigFile"))
}

fn check(config: &Config) {
    assert!(config.min_session_timeout_ms <= config.max_session_timeout_ms);
    assert!((1..=255).contains(&config.server_id));
    assert!(config.server_id < 255 || !config.extended_types);
    assert!((1024..=1 << 30).contains(&config.jute_max_buffer));
    assert!(config.tick_ms > 0 && config.snap_count >= 2 && config.snap_retain_count >= 3);
    assert!(config.segment_bytes >= 1 << 20 && config.container_max_per_minute >= 1);
    // Several servers are not kept in memory.
    assert!(config.in_memory && config.members.len() < 2 && config.quorum.is_none());
    // What it says of itself can be shown.
    let _ = (
        config.client.to_string(),
        config.four_letter_words.to_string(),
    );
}

fn check_problems(invalid: &Invalid, lines: usize) {
    assert!(!invalid.problems.is_empty());
    for problem in &invalid.problems {
        assert!(!problem.message.is_empty(), "{problem:?}");
        let line = problem
            .place
            .strip_prefix(NAME)
            .expect("a place in the file");
        if let Some(line) = line.strip_prefix(':') {
            let line: usize = line.parse().expect("the number of a line");
            assert!((1..=lines).contains(&line), "{problem:?}");
        } else {
            assert_eq!(line, "", "{problem:?}");
        }
    }
    // A value that is refused is named with its key and where it stands.
    for setting in &invalid.settings {
        if matches!(setting.verdict, zkraft::config::Verdict::Refused) {
            let place = setting.given.origin.to_string();
            let named = shown(&setting.given.key, &setting.given.value);
            let about = |problem: &zkraft::config::Problem| {
                problem.place == place && problem.message.starts_with(&named)
            };
            assert!(invalid.problems.iter().any(about), "{setting:?}");
        }
    }
}

pub fn seeds() -> Vec<Vec<u8>> {
    let deployed = include_bytes!("../../../deploy/zoo.cfg");
    let several = "\u{feff}tickTime=2000\r\ninitLimit=5\nserver.1=[::1]:2888:3888:participant;\
                   0.0.0.0:2181\nzookeeper.forceSync=no\njute.maxbuffer=0xfffff\n\
                   quorumListenOnAllIPs true\n# comment \\\nauthProvider.1:org.x\n\
                   DigestAuthenticationProvider.superDigest=super:AAAAAAAAAAAAAAAAAAAAAAAAAAA=\n";
    let escapes = "client\\u0050ort=21\\\n  81\ndata\\ Dir=/a\nbroken=\\u12\n!no\nclientPort=0\n";
    vec![
        deployed.to_vec(),
        zkraft::config::DEV_SETTINGS.as_bytes().to_vec(),
        several.as_bytes().to_vec(),
        escapes.as_bytes().to_vec(),
        b"clientPort=70000\ntickTime=x\nminSessionTimeout=9\nmaxSessionTimeout=8".to_vec(),
        b"server.1=a:1:2\nserver.2=b:1:2\nsecureClientPort=1\nssl.keyStore.password=x".to_vec(),
        b"server.1=a:1:2|[::1]:1:3:observer;2181\nadvertisedClientAddress.1=a:2181\n".to_vec(),
        b"statefulSet.replicas=3\nstatefulSet.service=zk\nstatefulSet.pod=zk-0\n".to_vec(),
        b"clientPort=1\xff\n".to_vec(),
    ]
}
