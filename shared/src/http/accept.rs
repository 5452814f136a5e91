//! Which of several media types a client prefers (RFC 9110, 12.5.1).

use super::message::Headers;

impl Headers {
    /// That of the `offered` media types that the client likes best, the first of equals; the first one if it says nothing.
    /// None if it takes none of them.
    pub fn preferred<'a>(&self, offered: &[&'a str]) -> Option<&'a str> {
        let accept: Vec<&str> =
            self.all("Accept").flat_map(|value| value.split(',')).filter(|range| !range.trim().is_empty()).collect();
        if accept.is_empty() {
            return offered.first().copied();
        }
        let wanted = offered.iter().map(|media_type| (*media_type, quality(&accept, media_type)));
        let best = |best: (&'a str, f32), next: (&'a str, f32)| if next.1 > best.1 { next } else { best };
        wanted.reduce(best).filter(|(_, quality)| *quality > 0.0).map(|(media_type, _)| media_type)
    }
}

/// The quality of the most specific range that covers the media type; 0 if none does.
fn quality(accept: &[&str], media_type: &str) -> f32 {
    let covering = accept.iter().filter_map(|range| covering(range, media_type));
    covering.reduce(|best, next| if next.0 > best.0 { next } else { best }).map_or(0.0, |(_, quality)| quality)
}

/// How specific a range is that covers the media type, and its quality. Parameters other than `q` are not looked at.
fn covering(range: &str, media_type: &str) -> Option<(u8, f32)> {
    let mut parts = range.split(';').map(str::trim);
    let range = parts.next()?.to_ascii_lowercase();
    let (kind, _) = media_type.split_once('/')?;
    let specific = match range.strip_suffix("/*") {
        _ if range == media_type => 2,
        Some(covered) if covered == kind => 1,
        Some("*") => 0,
        _ => return None,
    };
    let weight = parts.find_map(|part| part.strip_prefix("q=").or(part.strip_prefix("Q=")));
    // what is no number is no wish
    Some((specific, weight.map_or(1.0, |weight| weight.parse().unwrap_or(0.0))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn preferred(accept: &[&str]) -> Option<&'static str> {
        let mut headers = Headers::default();
        accept.iter().for_each(|value| headers.push("Accept", *value));
        headers.preferred(&["application/json", "text/plain"])
    }

    #[test]
    fn the_best_liked_media_type_is_chosen_and_the_first_of_equals() {
        const JSON: Option<&str> = Some("application/json");
        const TEXT: Option<&str> = Some("text/plain");
        for (accept, chosen) in [
            (&[] as &[&str], JSON),
            (&[""], JSON),
            (&["*/*"], JSON),
            (&["application/json"], JSON),
            (&["application/*"], JSON),
            (&["text/plain"], TEXT),
            (&["Text/Plain; charset=utf-8"], TEXT),
            (&["text/*"], TEXT),
            (&["text/plain, application/json"], JSON),
            (&["application/json;q=0.5, text/plain"], TEXT),
            (&["text/plain;q=0.9", "*/*;q=0.1"], TEXT),
            (&["*/*, application/json;q=0"], TEXT),
            (&["text/html, */*;q=0.8"], JSON),
            (&["text/html"], None),
            (&["application/json;q=0"], None),
            (&["application/problem+json"], None),
            (&["nonsense, ;q=1"], None),
            (&["text/plain;q=x"], None),
        ] {
            assert_eq!(preferred(accept), chosen, "{accept:?}");
        }
    }
}
