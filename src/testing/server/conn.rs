//! One connection, and how to end it badly.
//!
//! Owns: the stream under hyper, so that a fault can reset it or cut an answer at a byte. Does
//! not own: when to.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

/// Where an answer is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cut {
    /// Whether bytes count only after the end of the head.
    after_head: bool,
    /// How much of the `\r\n\r\n` that ends the head was seen.
    matched: usize,
    /// Bytes that may still pass (of the body, where `after_head`).
    left: usize,
}

impl Cut {
    /// After this many bytes of the head.
    pub fn in_head(bytes: usize) -> Self {
        Self {
            after_head: false,
            matched: 0,
            left: bytes,
        }
    }

    /// After the head and this many bytes of the body.
    pub fn in_body(bytes: usize) -> Self {
        Self {
            after_head: true,
            matched: 0,
            left: bytes,
        }
    }

    /// Goes over `bytes`; how many of them pass.
    fn pass(&mut self, bytes: &[u8]) -> usize {
        const END: &[u8] = b"\r\n\r\n";
        let mut passed = 0;
        for &byte in bytes {
            if self.after_head && self.matched < END.len() {
                if END.get(self.matched) == Some(&byte) {
                    self.matched += 1;
                } else {
                    self.matched = usize::from(byte == b'\r');
                }
            } else if self.left == 0 {
                break;
            } else {
                self.left -= 1;
            }
            passed += 1;
        }
        passed
    }

    fn is_done(&self) -> bool {
        self.left == 0 && (!self.after_head || self.matched == 4)
    }
}

/// What a request may do to its connection.
#[derive(Debug, Default)]
pub(super) struct Control {
    state: Mutex<State>,
    /// Ends the connection when cancelled.
    pub end: CancellationToken,
}

#[derive(Debug, Default)]
struct State {
    reset: bool,
    cut: Option<Cut>,
}

impl Control {
    /// Ends it with a RST.
    pub fn reset(&self) {
        self.state.lock().reset = true;
        self.end.cancel();
    }

    /// Ends it with a FIN.
    pub fn close(&self) {
        self.end.cancel();
    }

    /// Ends it in the middle of the next answer.
    pub fn cut_answer(&self, cut: Cut) {
        self.state.lock().cut = Some(cut);
    }
}

/// The stream under hyper.
#[derive(Debug)]
pub(super) struct Stream {
    inner: TcpStream,
    control: Arc<Control>,
}

impl Stream {
    pub fn new(inner: TcpStream, control: Arc<Control>) -> Self {
        Self { inner, control }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if self.control.state.lock().reset {
            // With a linger of zero, close sends RST and forgets unsent bytes. Where it cannot
            // be set the peer has gone already.
            let _ = self.inner.set_zero_linger();
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let Some(before) = this.control.state.lock().cut else {
            return Pin::new(&mut this.inner).poll_write(cx, buf);
        };
        let mut cut = before;
        let allowed = cut.pass(buf);
        let written = if allowed == 0 {
            0
        } else {
            match Pin::new(&mut this.inner).poll_write(cx, buf.get(..allowed).unwrap_or(buf)) {
                Poll::Ready(Ok(n)) => n,
                other => return other,
            }
        };
        // The socket may have taken less: go again over what it took only.
        let mut cut = before;
        cut.pass(buf.get(..written).unwrap_or(buf));
        this.control.state.lock().cut = Some(cut);
        if cut.is_done() {
            this.control.end.cancel();
        }
        if written == 0 {
            // Nothing may follow; `end` drops this stream.
            return Poll::Pending;
        }
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What passes when the answer is written `size` bytes at a time.
    fn cut(mut cut: Cut, answer: &[u8], size: usize) -> usize {
        let mut passed = 0;
        for chunk in answer.chunks(size) {
            let n = cut.pass(chunk);
            passed += n;
            if n < chunk.len() || cut.is_done() {
                break;
            }
        }
        passed
    }

    #[test]
    fn an_answer_is_cut_at_the_byte_however_it_is_written() {
        let answer = b"HTTP/1.1 200 OK\r\na: b\r\r\nc: d\r\n\r\n0123456789";
        for size in 1..answer.len() + 1 {
            assert_eq!(cut(Cut::in_head(7), answer, size), 7, "{size}");
            assert_eq!(
                cut(Cut::in_body(5), answer, size),
                answer.len() - 5,
                "{size}"
            );
        }
    }
}
