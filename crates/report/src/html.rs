//! HTML that can't be broken by what is put into it.
//!
//! [`Html`] keeps its text to itself. Names of elements and attributes are literals (`&'static str`),
//! everything else goes through [`Escaping`], and elements close by themselves.

use std::fmt::{self, Display, Write};

/// A page, or part of one, under construction.
#[derive(Default)]
pub struct Html {
    out: String,
}

/// Attributes of an element. Values are escaped.
pub type Attributes<'a> = &'a [(&'static str, &'a dyn Display)];

impl Html {
    /// A whole document: its head, then what `body` writes.
    pub fn document(
        title: &str,
        head: &[Attributes<'_>],
        style: &'static str,
        body: impl FnOnce(&mut Self),
    ) -> String {
        let mut page = Self { out: String::with_capacity(64 << 10) };
        page.out.push_str("<!DOCTYPE html>\n");
        page.element("html", &[("lang", &"en")], |page| {
            page.element("head", &[], |page| {
                for attributes in head {
                    page.empty("meta", attributes);
                }
                // Browsers ask the server for a picture unless one is named.
                page.empty("link", &[("rel", &"icon"), ("href", &"data:,")]);
                page.element("title", &[], |page| page.text(title));
                page.out.push_str("<style>");
                page.out.push_str(style);
                page.out.push_str("</style>");
            });
            page.element("body", &[], body);
        });
        page.out.push('\n');
        page.out
    }

    /// An element with what `content` writes.
    pub fn element(
        &mut self,
        name: &'static str,
        attributes: Attributes<'_>,
        content: impl FnOnce(&mut Self),
    ) {
        self.open(name, attributes);
        self.out.push('>');
        content(self);
        self.out.push_str("</");
        self.out.push_str(name);
        self.out.push('>');
    }

    /// An element that holds nothing.
    pub fn empty(&mut self, name: &'static str, attributes: Attributes<'_>) {
        self.open(name, attributes);
        self.out.push_str("/>");
    }

    /// An element that holds a text.
    pub fn leaf(&mut self, name: &'static str, attributes: Attributes<'_>, text: impl Display) {
        self.element(name, attributes, |page| page.text(text));
    }

    /// A text.
    pub fn text(&mut self, text: impl Display) {
        self.escaped(&text);
    }

    fn open(&mut self, name: &'static str, attributes: Attributes<'_>) {
        self.out.push('<');
        self.out.push_str(name);
        for (attribute, value) in attributes {
            self.out.push(' ');
            self.out.push_str(attribute);
            self.out.push_str("=\"");
            self.escaped(value);
            self.out.push('"');
        }
    }

    fn escaped(&mut self, text: &dyn Display) {
        // Writing into a String fails only if a Display implementation says so: ours don't.
        let _ = write!(Escaping(&mut self.out), "{text}");
    }
}

/// The one place where data becomes HTML. What goes through is ASCII, has no `<`, `>`, `&` or quote of its
/// own, and nothing that can't be seen: control characters and those that turn the direction of a line
/// around are shown by their number.
struct Escaping<'a>(&'a mut String);

impl Write for Escaping<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.chars().try_for_each(|character| self.write_char(character))
    }

    fn write_char(&mut self, character: char) -> fmt::Result {
        match character {
            '&' => self.0.push_str("&amp;"),
            '<' => self.0.push_str("&lt;"),
            '>' => self.0.push_str("&gt;"),
            '"' => self.0.push_str("&quot;"),
            '\'' => self.0.push_str("&#39;"),
            ' '..='~' => self.0.push(character),
            _ if is_unseen(character) => write!(self.0, "[U+{:04X}]", u32::from(character))?,
            _ => write!(self.0, "&#x{:X};", u32::from(character))?,
        }
        Ok(())
    }
}

/// Characters that leave no mark of their own on a page, or change how others are shown.
fn is_unseen(character: char) -> bool {
    character.is_control()
        || matches!(character,
            '\u{AD}' | '\u{61C}' | '\u{180E}' | '\u{200B}'..='\u{200F}' | '\u{2028}'..='\u{202E}'
            | '\u{2060}'..='\u{206F}' | '\u{FEFF}' | '\u{FFF9}'..='\u{FFFB}' | '\u{E0000}'..='\u{E0FFF}')
        || u32::from(character) & 0xFFFE == 0xFFFE
        || matches!(character, '\u{FDD0}'..='\u{FDEF}')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shown(text: &str) -> String {
        let mut page = Html::default();
        page.text(text);
        page.out
    }

    #[test]
    fn markup_in_a_text_stays_text() {
        assert_eq!(
            shown("<script>alert(\"1\")</script>&amp;'"),
            "&lt;script&gt;alert(&quot;1&quot;)&lt;/script&gt;&amp;amp;&#39;"
        );
        assert_eq!(
            shown("]]> --> </style> </title>"),
            "]]&gt; --&gt; &lt;/style&gt; &lt;/title&gt;"
        );
    }

    #[test]
    fn markup_in_an_attribute_stays_its_value() {
        let mut page = Html::default();
        page.empty("rect", &[("class", &"\" onload=\"alert(1)\" x='")]);
        assert_eq!(page.out, "<rect class=\"&quot; onload=&quot;alert(1)&quot; x=&#39;\"/>");
    }

    #[test]
    fn what_can_t_be_seen_is_shown_by_its_number() {
        assert_eq!(
            shown("a\nb\tc\u{0}d\u{7f}\u{85}"),
            "a[U+000A]b[U+0009]c[U+0000]d[U+007F][U+0085]"
        );
        assert_eq!(shown("\u{202E}evil\u{2066}\u{200F}"), "[U+202E]evil[U+2066][U+200F]");
        assert_eq!(
            shown("\u{FEFF}\u{200B}\u{E0041}\u{FFFF}\u{10FFFE}"),
            "[U+FEFF][U+200B][U+E0041][U+FFFF][U+10FFFE]"
        );
    }

    #[test]
    fn other_scripts_are_references() {
        assert_eq!(shown("\u{e9}\u{5e2}\u{1F600}"), "&#xE9;&#x5E2;&#x1F600;");
    }

    /// What a browser reads out of a text that was escaped, for what can be seen.
    fn read_back(html: &str) -> String {
        let mut out = String::new();
        let mut rest = html;
        while let Some(at) = rest.find('&') {
            out.push_str(&rest[..at]);
            let end = at + rest[at..].find(';').expect("a reference ends");
            out.push(match &rest[at + 1..end] {
                "amp" => '&',
                "lt" => '<',
                "gt" => '>',
                "quot" => '"',
                "#39" => '\'',
                number => char::from_u32(
                    u32::from_str_radix(number.strip_prefix("#x").expect("hexadecimal"), 16)
                        .expect("digits"),
                )
                .expect("a character"),
            });
            rest = &rest[end + 1..];
        }
        out + rest
    }

    proptest! {
        #[test]
        fn nothing_gets_out_of_a_text(text in any::<String>()) {
            let html = shown(&text);
            prop_assert!(html.bytes().all(|byte| matches!(byte, b' '..=b'~')));
            prop_assert!(!html.contains(['<', '>', '"', '\'']));
            let seen: String = text.chars().filter(|one| !is_unseen(*one)).collect();
            if seen == text {
                prop_assert_eq!(read_back(&html), text);
            }
        }

        #[test]
        fn nothing_gets_out_of_an_attribute(text in any::<String>()) {
            let mut page = Html::default();
            page.empty("p", &[("title", &text)]);
            prop_assert_eq!(page.out.matches('"').count(), 2);
            prop_assert_eq!(page.out.matches('<').count() + page.out.matches('>').count(), 2);
        }
    }
}
