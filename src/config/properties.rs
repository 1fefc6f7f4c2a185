//! Java properties: the syntax of zoo.cfg (§12.1).
//!
//! Text in, `key`, `value` and line number out. It knows no key and gives no value a meaning.
//! The rules are those of `java.util.Properties`: `=`, `:` or blanks after the key, `#` and `!`
//! comments, a backslash at the end of a line to go on in the next, `\t \n \f \r \uXXXX` escapes.
//! One difference: the file is UTF-8, where Java reads Latin-1.

/// One `key=value`, trimmed as ZooKeeper trims it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Property {
    pub key: String,
    pub value: String,
    /// Where it starts, counted from 1.
    pub line: usize,
}

/// `\u` that is not followed by four hexadecimal digits.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("\\u must be followed by four hexadecimal digits; a backslash itself is written \\\\")]
pub struct BadEscape {
    pub line: usize,
}

/// Every property in the order of the text, duplicates included, and every malformed line.
pub fn parse(text: &str) -> (Vec<Property>, Vec<BadEscape>) {
    let mut properties = Vec::new();
    let mut errors = Vec::new();
    for (line, logical) in logical_lines(text) {
        let (key, value) = split(&logical);
        match (unescape(key), unescape(value)) {
            (Some(key), Some(value)) => properties.push(Property {
                key: trim(&key),
                value: trim(&value),
                line,
            }),
            _ => errors.push(BadEscape { line }),
        }
    }
    (properties, errors)
}

/// Lines with their continuations joined, without comments and blank lines.
fn logical_lines(text: &str) -> Vec<(usize, String)> {
    let text = text.replace("\r\n", "\n").replace('\r', "\n");
    let mut lines = Vec::new();
    let mut open: Option<(usize, String)> = None;
    for (number, natural) in (1..).zip(text.split('\n')) {
        let natural = natural.trim_start_matches(is_blank);
        // A comment mark counts only where a line begins, not where one goes on.
        if open.is_none() && (natural.is_empty() || natural.starts_with(['#', '!'])) {
            continue;
        }
        let (line, mut logical) = open.take().unwrap_or((number, String::new()));
        let backslashes = natural.len() - natural.trim_end_matches('\\').len();
        if backslashes % 2 == 1 {
            logical.push_str(&natural[..natural.len() - 1]);
            open = Some((line, logical));
        } else {
            logical.push_str(natural);
            lines.push((line, logical));
        }
    }
    lines.extend(open);
    lines.retain(|(_, logical)| !logical.is_empty());
    lines
}

/// Splits at the first separator that is not escaped. Both parts are still escaped.
fn split(logical: &str) -> (&str, &str) {
    let mut escaped = false;
    let end = logical.find(|c: char| {
        let ends = !escaped && (is_blank(c) || c == '=' || c == ':');
        escaped = !escaped && c == '\\';
        ends
    });
    let (key, rest) = logical.split_at(end.unwrap_or(logical.len()));
    let rest = rest.trim_start_matches(is_blank);
    let value = rest.strip_prefix(['=', ':']).unwrap_or(rest);
    (key, value.trim_start_matches(is_blank))
}

fn unescape(text: &str) -> Option<String> {
    // Java's characters are UTF-16 units: a pair of `\u` escapes may make one character.
    let mut units: Vec<u16> = Vec::with_capacity(text.len());
    let mut rest = text.chars();
    while let Some(c) = rest.next() {
        let c = match c {
            '\\' => match rest.next() {
                Some('u') => {
                    let digits = rest.as_str().get(..4)?;
                    if !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                        return None;
                    }
                    units.push(u16::from_str_radix(digits, 16).ok()?);
                    rest = rest.as_str()[4..].chars();
                    continue;
                }
                Some('t') => '\t',
                Some('n') => '\n',
                Some('f') => '\x0c',
                Some('r') => '\r',
                Some(other) => other,
                None => break,
            },
            _ => c,
        };
        units.extend_from_slice(c.encode_utf16(&mut [0; 2]));
    }
    Some(String::from_utf16_lossy(&units))
}

/// Java's `trim`: everything up to the blank, control characters included.
fn trim(text: &str) -> String {
    text.trim_matches(|c| c <= ' ').to_owned()
}

fn is_blank(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\x0c')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pairs(text: &str) -> Vec<(String, String)> {
        let (properties, errors) = parse(text);
        assert_eq!(errors, []);
        let pair = |property: Property| (property.key, property.value);
        properties.into_iter().map(pair).collect()
    }

    fn one(text: &str) -> (String, String) {
        let mut all = pairs(text);
        assert_eq!(all.len(), 1, "{text:?}");
        all.remove(0)
    }

    fn pair(key: &str, value: &str) -> (String, String) {
        (key.into(), value.into())
    }

    #[test]
    fn a_key_ends_at_equals_colon_or_blank() {
        for text in ["a=b", "a:b", "a b", " a = b ", "\ta\t:\tb", "a  b", "a =b"] {
            assert_eq!(one(text), pair("a", "b"), "{text:?}");
        }
        assert_eq!(one("a==b"), pair("a", "=b"));
        assert_eq!(one("a"), pair("a", ""));
        assert_eq!(one("=b"), pair("", "b"));
        assert_eq!(one(r"a\=b\ c=d"), pair("a=b c", "d"));
    }

    #[test]
    fn comments_and_blank_lines_are_nothing() {
        assert_eq!(pairs("# a=b\n  ! c=d\n\n \t \n"), []);
        assert_eq!(one("# comments do not continue \\\na=b"), pair("a", "b"));
        assert_eq!(
            one("a=b # part of the value"),
            pair("a", "b # part of the value")
        );
    }

    #[test]
    fn a_backslash_goes_on_in_the_next_line() {
        assert_eq!(one("a=b,\\\n    c,\\\r\n\td"), pair("a", "b,c,d"));
        assert_eq!(one("a=b\\\n#c"), pair("a", "b#c"));
        assert_eq!(one("a=b\\"), pair("a", "b"));
        assert_eq!(pairs("a=b\\\n\nc=d"), [pair("a", "b"), pair("c", "d")]);
        assert_eq!(pairs("a=b\\\\\nc=d"), [pair("a", "b\\"), pair("c", "d")]);
        assert_eq!(pairs("\\\n\n# comment\n"), []);
    }

    #[test]
    fn lines_are_counted_where_properties_start() {
        let (properties, _) = parse("# first\r\na=1\\\r\n2\r\rb=3\n");
        let lines: Vec<usize> = properties.iter().map(|property| property.line).collect();
        assert_eq!(lines, [2, 5]);
    }

    #[test]
    fn escapes_are_javas() {
        assert_eq!(one(r"a=\u0041\u00e4\uD83D\uDE00|"), pair("a", "Aä😀|"));
        assert_eq!(one(r"a=x\ty\nz\q"), pair("a", "x\ty\nzq"));
        assert_eq!(one(r"path=C\:\\data"), pair("path", r"C:\data"));
    }

    #[test]
    fn every_malformed_escape_is_reported_and_the_rest_is_read() {
        let (properties, errors) = parse("a=\\u12\nb=2\n\\uzzzz=3\nc=\\u+123");
        assert_eq!(properties.len(), 1);
        let lines: Vec<usize> = errors.iter().map(|error| error.line).collect();
        assert_eq!(lines, [1, 3, 4]);
    }

    /// Writes like Java's `Properties.store`, with all that is special escaped.
    fn escape(text: &str) -> String {
        let mut out = String::new();
        for c in text.chars() {
            match c {
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\x0c' => out.push_str("\\f"),
                ' ' | '=' | ':' | '#' | '!' | '\\' => out.extend(['\\', c]),
                _ => out.push(c),
            }
        }
        out
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(
            written in prop::collection::vec((any::<String>(), any::<String>()), 0..8)
        ) {
            let text: String = written
                .iter()
                .map(|(key, value)| format!("{}={}\n", escape(key), escape(value)))
                .collect();
            let read = pairs(&text);
            let expected: Vec<_> =
                written.iter().map(|(key, value)| (trim(key), trim(value))).collect();
            prop_assert_eq!(read, expected);
        }

        #[test]
        fn any_text_is_parsed_without_panic(text in any::<String>()) {
            let (properties, errors) = parse(&text);
            let lines = text.split(['\n', '\r']).count();
            prop_assert!(properties.len() + errors.len() <= lines);
            prop_assert!(properties.iter().all(|property| property.line <= lines));
        }

        #[test]
        fn texts_of_special_characters_are_parsed_without_panic(
            text in "[a=: \\\\#!u0\\n\\r\\t]{0,40}"
        ) {
            let (properties, _) = parse(&text);
            prop_assert!(properties.iter().all(|property| property.line >= 1));
        }
    }
}
