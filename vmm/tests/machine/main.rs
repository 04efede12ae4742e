//! Real machines, by the real VMM. Needs root, QEMU, and `WRENN_DIR` with a guest kernel and an image.

mod host;

use host::Host;

#[tokio::test(flavor = "multi_thread")]
async fn first() {
    let host = Host::start("31000-31009").await;
    println!("{} on {}", host.driver.summary(), host.store.kind());
    let running = host.boot("one").await;
    println!("{}", running.run("uname -a"));
    host.end(running).await;
    host.stop().await;
}
