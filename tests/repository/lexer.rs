//! Splits Rust sources into words, comments and strings. That is enough to check names, prose and imports without a parser.

/// A part of a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part<'a> {
    /// An identifier, a keyword or a number.
    Word(&'a str),
    /// A comment, with its slashes.
    Comment(&'a str),
    /// A string literal, with its quotes.
    Text(&'a str),
    /// Any other character.
    Sign(char),
}

/// Returns the parts of a source, each with its line, counted from 1.
pub(crate) fn parts(text: &str) -> Vec<(usize, Part<'_>)> {
    let (mut found, mut rest, mut line) = (Vec::new(), text, 1);
    while let Some(first) = rest.chars().next() {
        let word = rest.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(rest.len());
        let (len, part) = if rest.starts_with("//") {
            let len = rest.find('\n').unwrap_or(rest.len());
            (len, Some(Part::Comment(&rest[..len])))
        } else if rest.starts_with("/*") {
            let len = rest.find("*/").map_or(rest.len(), |end| end + 2);
            (len, Some(Part::Comment(&rest[..len])))
        } else if let Some(len) = raw_string(rest) {
            (len, Some(Part::Text(&rest[..len])))
        } else if first == '"' {
            let len = quoted(rest, '"');
            (len, Some(Part::Text(&rest[..len])))
        } else if first == '\'' && is_character(rest) {
            (quoted(rest, '\''), None)
        } else if word > 0 {
            (word, Some(Part::Word(&rest[..word])))
        } else {
            (first.len_utf8(), Some(Part::Sign(first)).filter(|_| !first.is_whitespace()))
        };
        found.extend(part.map(|part| (line, part)));
        line += rest[..len].matches('\n').count();
        rest = &rest[len..];
    }
    found
}

/// Returns the code alone: words, and signs as words of one character.
pub(crate) fn code(text: &str) -> Vec<String> {
    let code = parts(text).into_iter().filter_map(|(_, part)| match part {
        Part::Word(word) => Some(word.to_owned()),
        Part::Sign(sign) => Some(sign.to_string()),
        Part::Comment(_) | Part::Text(_) => None,
    });
    code.collect()
}

/// Returns the words of an identifier, in lower case: `OnPeerGone` and `on_peer_gone` both have three.
pub(crate) fn words(identifier: &str) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    let mut after = '_';
    for c in identifier.chars() {
        if c == '_' || c.is_ascii_digit() {
            after = '_';
            continue;
        }
        if after == '_' || (c.is_uppercase() && after.is_lowercase()) {
            found.push(String::new());
        }
        found.last_mut().expect("a word has begun").extend(c.to_lowercase());
        after = c;
    }
    found
}

/// Returns the length of a literal that begins here and ends with `quote`.
fn quoted(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == quote => return at + 1,
            _ => {}
        }
    }
    text.len()
}

fn raw_string(text: &str) -> Option<usize> {
    let body = text.strip_prefix("br").or_else(|| text.strip_prefix('r'))?;
    let hashes = body.find('"').filter(|at| body[..*at].chars().all(|c| c == '#'))?;
    let end = format!("\"{}", "#".repeat(hashes));
    let open = text.len() - body.len() + hashes + 1;
    Some(text[open..].find(&end).map_or(text.len(), |at| open + at + end.len()))
}

/// Returns whether a quote begins a character literal, and not a lifetime.
fn is_character(text: &str) -> bool {
    let mut chars = text.chars().skip(1);
    let (first, second) = (chars.next(), chars.next());
    first == Some('\\') || second == Some('\'')
}

#[test]
fn code_has_no_comments_and_no_strings() {
    let fine = r##"
        //! See [`crate::sys`]. unsafe { }
        fn f<'a>(x: &'a str) -> char { /* crate::listener, libc */ '"' }
        const A: &str = "crate::sys unsafe \" libc";
        const B: &str = r#"crate::sys " unsafe"#;
        const C: [char; 3] = ['\'', '\\', 'x'];
    "##;
    let code = code(fine);
    assert!(!code.iter().any(|word| ["crate", "unsafe", "libc", "listener"].contains(&word.as_str())));
    assert_eq!(code.iter().filter(|word| *word == "const").count(), 3);
    let lines: Vec<_> = parts("a\n\"b\nc\"\nd").into_iter().map(|(line, _)| line).collect();
    assert_eq!(lines, [1, 2, 4]);
}

#[test]
fn identifiers_are_split_into_words() {
    assert_eq!(words("OnPeerGone"), ["on", "peer", "gone"]);
    assert_eq!(words("on_peer_gone2x"), ["on", "peer", "gone", "x"]);
    assert_eq!(words("MAX_LEN"), ["max", "len"]);
    assert_eq!(words("_"), Vec::<String>::new());
}
