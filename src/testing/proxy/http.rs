//! Just enough HTTP/1.1: where a head ends, and how long the body behind it is.

use std::io;

/// The longest head, in bytes.
pub(super) const MAX_HEAD: usize = 64 * 1024;

/// The first line of a request, and its body's framing.
#[derive(Debug, Clone)]
pub(super) struct RequestHead {
    pub method: String,
    pub target: String,
    pub framing: Framing,
}

/// The status of an answer, and its body's framing.
#[derive(Debug, Clone)]
pub(super) struct AnswerHead {
    pub status: u16,
    pub framing: Framing,
    /// Whether the server closes behind it.
    pub is_last: bool,
}

/// Where a body ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Framing {
    /// After so many bytes more.
    Length(u64),
    /// After the chunk of no bytes.
    Chunked(Chunk),
    /// With the connection.
    UntilClose,
}

/// What of a chunked body comes next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Chunk {
    /// A line with the size of a chunk: what was seen of it.
    Size(Vec<u8>),
    /// So many bytes, and the line's end behind them.
    Data(u64),
    /// Trailers, up to an empty line: what was seen of this line.
    Trailer(Vec<u8>),
    Done,
}

impl Framing {
    pub fn is_done(&self) -> bool {
        matches!(self, Self::Length(0) | Self::Chunked(Chunk::Done))
    }

    /// The length of all of it, where that is known before.
    pub fn length(&self) -> Option<u64> {
        match self {
            Self::Length(length) => Some(*length),
            _ => None,
        }
    }

    /// Goes over `bytes`; how many of them are of this body.
    pub fn consume(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::UntilClose => Ok(bytes.len()),
            Self::Length(left) => {
                let taken = bytes
                    .len()
                    .min(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= taken as u64;
                Ok(taken)
            }
            Self::Chunked(chunk) => {
                let mut taken = 0;
                while let Some(rest) = bytes.get(taken..).filter(|rest| !rest.is_empty()) {
                    if *chunk == Chunk::Done {
                        break;
                    }
                    taken += chunk.consume(rest)?;
                }
                Ok(taken)
            }
        }
    }
}

impl Chunk {
    fn consume(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Done => Ok(0),
            Self::Data(left) => {
                let taken = bytes
                    .len()
                    .min(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= taken as u64;
                if *left == 0 {
                    *self = Self::Size(Vec::new());
                }
                Ok(taken)
            }
            Self::Size(line) | Self::Trailer(line) => {
                let end = bytes.iter().position(|byte| *byte == b'\n');
                let taken = end.map_or(bytes.len(), |at| at + 1);
                line.extend(bytes.iter().take(taken));
                if line.len() > MAX_HEAD {
                    return Err(bad("a line of a chunked body has no end"));
                }
                if end.is_some() {
                    *self = self.next()?;
                }
                Ok(taken)
            }
        }
    }

    /// What comes behind a line that is whole.
    fn next(&self) -> io::Result<Self> {
        match self {
            Self::Trailer(line) if line.iter().all(u8::is_ascii_whitespace) => Ok(Self::Done),
            Self::Size(line) => {
                let text = String::from_utf8_lossy(line);
                let digits = text.split(';').next().unwrap_or_default().trim();
                match u64::from_str_radix(digits, 16) {
                    Ok(0) => Ok(Self::Trailer(Vec::new())),
                    Ok(size) => Ok(Self::Data(size.saturating_add(2))),
                    Err(_) => Err(bad("the size of a chunk cannot be read")),
                }
            }
            _ => Ok(Self::Trailer(Vec::new())),
        }
    }
}

fn bad(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

/// Where the head that `bytes` begin with ends, if it does.
pub(super) fn end_of_head(bytes: &[u8]) -> Option<usize> {
    bytes
        .windows(4)
        .position(|four| four == b"\r\n\r\n")
        .map(|at| at + 4)
}

struct Headers {
    length: Option<u64>,
    is_chunked: bool,
    closes: bool,
}

fn headers<'l>(lines: impl Iterator<Item = &'l str>) -> io::Result<Headers> {
    let mut found = Headers {
        length: None,
        is_chunked: false,
        closes: false,
    };
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        let value = value.trim();
        match name.trim().to_ascii_lowercase().as_str() {
            "content-length" => {
                let length = value
                    .parse()
                    .map_err(|_| bad("no length in Content-Length"))?;
                found.length = Some(length);
            }
            "transfer-encoding" => {
                found.is_chunked = value.to_ascii_lowercase().contains("chunked");
            }
            "connection" => found.closes = value.eq_ignore_ascii_case("close"),
            _ => {}
        }
    }
    Ok(found)
}

/// Reads a request's head.
pub(super) fn request_head(bytes: &[u8]) -> io::Result<RequestHead> {
    let text = String::from_utf8_lossy(bytes);
    let mut lines = text.split("\r\n");
    let mut words = lines.next().unwrap_or_default().split(' ');
    let (Some(method), Some(target)) = (words.next(), words.next()) else {
        return Err(bad("no request line"));
    };
    let (method, target) = (method.to_owned(), target.to_owned());
    let headers = headers(lines)?;
    let framing = match headers.is_chunked {
        true => Framing::Chunked(Chunk::Size(Vec::new())),
        false => Framing::Length(headers.length.unwrap_or(0)),
    };
    Ok(RequestHead {
        method,
        target,
        framing,
    })
}

/// Reads the head of the answer to a request of this method.
pub(super) fn answer_head(bytes: &[u8], method: &str) -> io::Result<AnswerHead> {
    let text = String::from_utf8_lossy(bytes);
    let mut lines = text.split("\r\n");
    let status = lines.next().unwrap_or_default().split(' ').nth(1);
    let status = status.and_then(|status| status.parse::<u16>().ok());
    let status = status.ok_or_else(|| bad("no status line"))?;
    let headers = headers(lines)?;
    let has_body = method != "HEAD" && !matches!(status, 100..=199 | 204 | 304);
    let framing = match (has_body, headers.is_chunked, headers.length) {
        (false, ..) => Framing::Length(0),
        (true, true, _) => Framing::Chunked(Chunk::Size(Vec::new())),
        (true, false, Some(length)) => Framing::Length(length),
        (true, false, None) => Framing::UntilClose,
    };
    Ok(AnswerHead {
        status,
        is_last: headers.closes || framing == Framing::UntilClose,
        framing,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads() {
        let put = b"PUT /b/k?x HTTP/1.1\r\nContent-Length: 12\r\n\r\n";
        assert_eq!(end_of_head(put), Some(put.len()));
        let put = request_head(put).unwrap();
        assert_eq!(
            (put.method.as_str(), put.target.as_str()),
            ("PUT", "/b/k?x")
        );
        assert_eq!(put.framing, Framing::Length(12));
        let answer = |text: &str, method| answer_head(text.as_bytes(), method).unwrap();
        let ok = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\n";
        assert_eq!(answer(ok, "GET").framing, Framing::Length(5));
        assert!(answer(ok, "GET").is_last);
        assert_eq!(answer(ok, "HEAD").framing, Framing::Length(0));
        let open = answer("HTTP/1.1 200 OK\r\n\r\n", "GET");
        assert_eq!((open.framing, open.is_last), (Framing::UntilClose, true));
        assert!(answer_head(b"nonsense", "GET").is_err());
        assert!(request_head(b"GET").is_err());
    }

    #[test]
    fn a_chunked_body_ends_where_it_ends_however_it_comes() {
        let body = b"5;x=y\r\nhello\r\n0\r\ntrailer: 1\r\n\r\n";
        let more = [&body[..], b"GET"].concat();
        for size in 1..more.len() {
            let mut framing = Framing::Chunked(Chunk::Size(Vec::new()));
            let mut taken = 0;
            for piece in more.chunks(size) {
                taken += framing.consume(piece).unwrap();
            }
            assert_eq!((taken, framing.is_done()), (body.len(), true), "{size}");
        }
        let mut framing = Framing::Chunked(Chunk::Size(Vec::new()));
        assert!(framing.consume(b"xyz\r\n").is_err());
    }
}
