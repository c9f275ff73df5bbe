//! A client's stream, with or without TLS.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// What is done with a stream that was accepted.
#[derive(Clone)]
pub(super) enum Acceptor {
    Plain,
    #[cfg(feature = "testing-tls")]
    Tls(tokio_rustls::TlsAcceptor),
}

impl Acceptor {
    pub fn is_tls(&self) -> bool {
        !matches!(self, Self::Plain)
    }

    pub async fn accept(self, stream: TcpStream) -> io::Result<Stream> {
        match self {
            Self::Plain => Ok(Stream::Plain(stream)),
            #[cfg(feature = "testing-tls")]
            Self::Tls(acceptor) => Ok(Stream::Tls(Box::new(acceptor.accept(stream).await?))),
        }
    }
}

/// A stream, with or without TLS.
pub(super) enum Stream {
    Plain(TcpStream),
    #[cfg(feature = "testing-tls")]
    Tls(Box<tokio_rustls::server::TlsStream<TcpStream>>),
}

impl Stream {
    pub fn tcp(&self) -> &TcpStream {
        match self {
            Self::Plain(stream) => stream,
            #[cfg(feature = "testing-tls")]
            Self::Tls(stream) => stream.get_ref().0,
        }
    }
}

macro_rules! on_either {
    ($this:expr, $stream:ident => $call:expr) => {
        match $this.get_mut() {
            Stream::Plain($stream) => {
                let $stream = Pin::new($stream);
                $call
            }
            #[cfg(feature = "testing-tls")]
            Stream::Tls($stream) => {
                let $stream = Pin::new($stream.as_mut());
                $call
            }
        }
    };
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        on_either!(self, stream => stream.poll_read(cx, buf))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        on_either!(self, stream => stream.poll_write(cx, buf))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        on_either!(self, stream => stream.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        on_either!(self, stream => stream.poll_shutdown(cx))
    }
}
