//! Where tokens come from: the app asks its own backend for them.

use std::future::Future;
use std::pin::Pin;

/// Why there is no token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenFault {
    /// Asked again after the usual wait.
    #[error("no token at the moment: {0}")]
    Unavailable(String),
    /// The user is logged out; not asked again until
    /// [`Client::reconnect`](crate::Client::reconnect).
    #[error("no token for this user: {0}")]
    Denied(String),
}

pub type TokenFuture<'a> = Pin<Box<dyn Future<Output = Result<String, TokenFault>> + Send + 'a>>;

/// Asked at each connect. Any `Fn() -> impl Future<Output = Result<String, TokenFault>>` is one.
pub trait TokenSource: Send + Sync + 'static {
    /// A token that is still valid for a while.
    fn token(&self) -> TokenFuture<'_>;
}

impl<F, Fut> TokenSource for F
where
    F: Fn() -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<String, TokenFault>> + Send + 'static,
{
    fn token(&self) -> TokenFuture<'_> {
        Box::pin(self())
    }
}
