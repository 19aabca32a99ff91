use crate::Client;
use std::sync::Arc;
use tokio::sync::Notify;
pub(super) async fn run(_client: Client, errands: Arc<Notify>) {
    errands.notified().await;
}
