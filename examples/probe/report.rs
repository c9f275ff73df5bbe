//! What was found, for people and for programs.

use std::fmt::Write as _;
use std::time::Duration;

use s3_writeback::remote::Adaptations;
use s3_writeback::remote::probe::{Capabilities, Support};
use serde::Serialize;

/// All of it.
#[derive(Debug, Serialize)]
pub struct Report {
    pub endpoint: String,
    pub bucket: String,
    pub fenced_mode_is_safe: bool,
    pub capabilities: Capabilities,
    /// By algorithm.
    pub checksums: Vec<(String, String)>,
    pub trailers: String,
    pub multipart: Multipart,
    pub clock_ahead_ms: Option<i64>,
    pub latency: Option<Latency>,
    pub adaptations: Option<Adaptations>,
}

#[derive(Debug, Serialize)]
pub struct Multipart {
    /// A part of less than 5 MiB that is not the last.
    pub small_parts: String,
    /// The part with number 10,001.
    pub part_10_001: String,
}

#[derive(Debug, Serialize)]
pub struct Latency {
    pub head_ms: Spread,
    pub put_1_kib_ms: Spread,
}

#[derive(Debug, Serialize)]
pub struct Spread {
    pub min: f64,
    pub median: f64,
    pub max: f64,
}

impl Spread {
    pub fn of(mut times: Vec<Duration>) -> Self {
        times.sort();
        let ms = |at: usize| {
            let micros = times.get(at).map_or(0, Duration::as_micros);
            micros as f64 / 1000.0
        };
        Self {
            min: ms(0),
            median: ms(times.len() / 2),
            max: ms(times.len().saturating_sub(1)),
        }
    }
}

impl Report {
    /// As a table.
    pub fn text(&self) -> String {
        let mut rows: Vec<(String, String)> = Vec::new();
        let mut row = |name: &str, value: String| rows.push((name.to_owned(), value));
        let c = &self.capabilities;
        row("create if absent (race of 8)", support(&c.if_none_match));
        row("compare and swap", support(&c.if_match));
        row("swap on a missing key", support(&c.if_match_missing));
        row("conditional completion", support(&c.conditional_complete));
        row("conditional delete", support(&c.conditional_delete));
        row("metadata comes back", support(&c.write_id_kept));
        row("CRC-64/NVME comes back", support(&c.crc64_kept));
        for (algorithm, verdict) in &self.checksums {
            row(&format!("checksum {algorithm}"), verdict.clone());
        }
        row("checksum in a trailer", self.trailers.clone());
        row("parts below 5 MiB", self.multipart.small_parts.clone());
        row("part 10,001", self.multipart.part_10_001.clone());
        let clock = self.clock_ahead_ms;
        let clock = clock.map_or("the server does not tell".to_owned(), |ms| {
            format!("{:+.1} s (to a second)", ms as f64 / 1000.0)
        });
        row("the server's clock", clock);
        let spread = |s: &Spread| format!("{:.1} / {:.1} / {:.1} ms", s.min, s.median, s.max);
        match &self.latency {
            None => row("latency", "a request failed".to_owned()),
            Some(latency) => {
                row("HEAD, min / median / max", spread(&latency.head_ms));
                row("PUT of 1 KiB", spread(&latency.put_1_kib_ms));
            }
        }
        if let Some(adaptations) = &self.adaptations {
            row("entity tags", format!("{:?}", adaptations.entity_tags));
            row(
                "checksum headers",
                format!("{:?}", adaptations.checksum_headers),
            );
        }
        let mut text = format!("{}, bucket {}\n\n", self.endpoint, self.bucket);
        for (name, value) in rows {
            let _ = writeln!(text, "{name:<30} {value}");
        }
        let verdict = if self.fenced_mode_is_safe {
            "\nfenced mode is safe\n".to_owned()
        } else {
            format!("\nfenced mode is NOT safe: {}\n", c.complaints().join("; "))
        };
        text + &verdict
    }
}

fn support(support: &Support) -> String {
    match support {
        Support::Honoured => "as S3".to_owned(),
        Support::Ignored { observed } => format!("IGNORED: {observed}"),
        Support::Refused { observed } => format!("REFUSED: {observed}"),
    }
}
