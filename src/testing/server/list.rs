//! A page of keys, as a pure function.

use std::collections::BTreeMap;
use std::ops::Bound;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;

/// What to list.
#[derive(Debug, Clone, Default)]
pub(super) struct Query {
    pub prefix: String,
    /// Not empty.
    pub delimiter: Option<String>,
    pub after: After,
    /// At most this many entries.
    pub max: usize,
}

/// Where a page starts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) enum After {
    #[default]
    Start,
    /// Behind this key.
    Key(String),
    /// Behind every key that starts with this.
    Prefix(String),
}

impl After {
    /// As a continuation token.
    pub fn to_token(&self) -> String {
        match self {
            Self::Start => BASE64.encode("s"),
            Self::Key(key) => BASE64.encode(format!("k{key}")),
            Self::Prefix(prefix) => BASE64.encode(format!("p{prefix}")),
        }
    }

    /// From a continuation token; `None` where it is not one.
    pub fn from_token(token: &str) -> Option<Self> {
        let text = String::from_utf8(BASE64.decode(token).ok()?).ok()?;
        let mut chars = text.chars();
        match chars.next()? {
            's' => Some(Self::Start),
            'k' => Some(Self::Key(chars.as_str().to_owned())),
            'p' => Some(Self::Prefix(chars.as_str().to_owned())),
            _ => None,
        }
    }
}

/// A page: keys and common prefixes together are at most the maximum, in byte order.
#[derive(Debug)]
pub(super) struct Page<'a, V> {
    pub objects: Vec<(&'a str, &'a V)>,
    pub prefixes: Vec<String>,
    /// Where the next page starts; `None` on the last.
    pub next: Option<After>,
}

/// Lists `keys`.
pub(super) fn list<'a, V>(keys: &'a BTreeMap<String, V>, query: &Query) -> Page<'a, V> {
    let mut page = Page {
        objects: Vec::new(),
        prefixes: Vec::new(),
        next: None,
    };
    if query.max == 0 {
        return page;
    }
    let prefix = query.prefix.as_str();
    let start = match &query.after {
        After::Key(key) if key.as_str() >= prefix => Bound::Excluded(key.as_str()),
        After::Prefix(p) if p.as_str() >= prefix => Bound::Included(p.as_str()),
        _ => Bound::Included(prefix),
    };
    // The group that is rolled up, or was on the page before: all its keys are passed over.
    let mut group = match &query.after {
        After::Prefix(p) => Some(p.clone()),
        _ => None,
    };
    let mut last = After::Start;
    for (key, value) in keys.range::<str, _>((start, Bound::Unbounded)) {
        let Some(rest) = key.strip_prefix(prefix) else {
            break;
        };
        if group.as_deref().is_some_and(|g| key.starts_with(g)) {
            continue;
        }
        if page.objects.len() + page.prefixes.len() == query.max {
            page.next = Some(last);
            break;
        }
        let rolled = query.delimiter.as_deref().and_then(|d| {
            rest.split_once(d)
                .map(|(head, _)| format!("{prefix}{head}{d}"))
        });
        if let Some(rolled) = rolled {
            last = After::Prefix(rolled.clone());
            page.prefixes.push(rolled.clone());
            group = Some(rolled);
        } else {
            last = After::Key(key.clone());
            page.objects.push((key, value));
        }
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Everything, page by page, tokens included.
    fn pages(keys: &BTreeMap<String, ()>, query: &Query) -> (Vec<String>, Vec<String>) {
        let (mut objects, mut prefixes) = (Vec::new(), Vec::new());
        let mut query = query.clone();
        for _ in 0..1000 {
            let page = list(keys, &query);
            assert!(page.objects.len() + page.prefixes.len() <= query.max);
            objects.extend(page.objects.iter().map(|(k, ())| (*k).to_owned()));
            prefixes.extend(page.prefixes);
            let Some(next) = page.next else {
                return (objects, prefixes);
            };
            query.after = After::from_token(&next.to_token()).unwrap();
        }
        panic!("pages without end");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn pages_are_the_whole_in_order(
            keys in proptest::collection::btree_set("[ab/é]{0,6}", 0..30),
            prefix in "[ab/]{0,3}",
            delimiter in proptest::option::of("/|b/"),
            start_after in proptest::option::of("[ab/]{0,4}"),
            max in 1_usize..6,
        ) {
            let keys: BTreeMap<String, ()> = keys.into_iter().map(|k| (k, ())).collect();
            // The plain definition.
            let (mut objects, mut prefixes) = (Vec::new(), Vec::<String>::new());
            for key in keys.keys() {
                if start_after.as_ref().is_some_and(|s| key <= s) {
                    continue;
                }
                let Some(rest) = key.strip_prefix(prefix.as_str()) else { continue };
                match delimiter.as_deref().and_then(|d| rest.split_once(d).map(|(h, _)| (h, d))) {
                    Some((head, d)) => {
                        let rolled = format!("{prefix}{head}{d}");
                        if prefixes.last() != Some(&rolled) {
                            prefixes.push(rolled);
                        }
                    }
                    None => objects.push(key.clone()),
                }
            }
            prefixes.sort();
            prefixes.dedup();
            let query = Query {
                prefix,
                delimiter,
                after: start_after.map_or(After::Start, After::Key),
                max,
            };
            let got = pages(&keys, &query);
            prop_assert_eq!(got.0, objects);
            prop_assert_eq!(got.1, prefixes);
        }
    }
}
