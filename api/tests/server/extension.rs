use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use axum::{Router, routing};
use wrenn_api::{Extension, Server, Worker};
use wrenn_schema::Services;

use crate::harness::{Running, refusal};

#[derive(Clone, Default)]
struct Billing {
    worker_stopped: Arc<AtomicBool>,
}

impl Extension for Billing {
    fn name(&self) -> &'static str {
        "billing"
    }

    fn routes(&self, services: &Arc<Services>) -> Router {
        let services = Arc::clone(services);
        let ready = move || async move { services.ready().await.is_ok().to_string() };
        Router::new().route("/billing", routing::get(ready)).route("/billing/breaks", routing::get(breaks))
    }

    fn workers(&self, _: &Arc<Services>) -> Vec<Worker> {
        let stopped = Arc::clone(&self.worker_stopped);
        vec![Worker::new("invoices", move |stop| {
            let stopped = Arc::clone(&stopped);
            async move {
                stop.cancelled().await;
                stopped.store(true, Ordering::SeqCst);
            }
        })]
    }
}

async fn breaks() -> &'static str {
    panic!("the extension breaks")
}

#[tokio::test(flavor = "multi_thread")]
async fn an_extension_adds_routes_and_workers() {
    let billing = Billing::default();
    let running = Running::start_with(Server::builder().extension(billing.clone()), "").await;
    let answer = running.get("/billing").send().await.unwrap();
    assert!(answer.headers().contains_key("x-request-id"));
    assert_eq!(answer.text().await.unwrap(), "true");
    let (status, code, body) = refusal(running.get("/billing/breaks")).await;
    assert_eq!((status, code.as_str()), (500, "INTERNAL"));
    assert!(!body.to_string().contains("breaks"));
    running.server.stop().await;
    assert!(billing.worker_stopped.load(Ordering::SeqCst));
}
