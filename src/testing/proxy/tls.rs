//! Certificates for the proxy, made as they are needed: a good one, and the ways to be bad.
//!
//! Each is signed by an authority of its own, which a client can be told to trust, so that what it
//! refuses is the name or the date and not the stranger.

use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, KeyUsagePurpose,
    date_time_ymd,
};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;

/// What is wrong with a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ProxyCertificate {
    /// Nothing: it is of 127.0.0.1 and `localhost`, from 2020 to 2100.
    Good,
    /// It is of `elsewhere.example`.
    WrongName,
    /// It ended with 2020.
    Expired,
}

/// A certificate, and who signed it.
pub(super) struct Certificate {
    pub acceptor: TlsAcceptor,
    /// In PEM.
    pub authority: String,
}

type AnyError = Box<dyn std::error::Error + Send + Sync>;

pub(super) fn make(certificate: ProxyCertificate) -> Result<Certificate, AnyError> {
    let mut authority = CertificateParams::new(Vec::<String>::new())?;
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    authority.not_before = date_time_ymd(2010, 1, 1);
    authority.not_after = date_time_ymd(2100, 1, 1);
    let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate()?)?;

    let names = match certificate {
        ProxyCertificate::WrongName => vec!["elsewhere.example".to_owned()],
        _ => vec!["127.0.0.1".to_owned(), "localhost".to_owned()],
    };
    let mut params = CertificateParams::new(names)?;
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = match certificate {
        ProxyCertificate::Expired => date_time_ymd(2021, 1, 1),
        _ => date_time_ymd(2100, 1, 1),
    };
    let key = KeyPair::generate()?;
    let signed = params.signed_by(&key, &authority)?;
    let key = PrivateKeyDer::try_from(key.serialize_der())?;
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![signed.der().clone()], key)?;
    Ok(Certificate {
        acceptor: TlsAcceptor::from(Arc::new(config)),
        authority: authority.pem(),
    })
}
