//! What a guest finds in its memory, and how often it had to ask for it.

use wrenn_vmm::{
    memory::{GenerationWriter, Generations},
    uffd::{MemorySource, PAGE, Stats},
};

use super::{
    host::{DEADLINE, Host, PAGES},
    region::{is_hole, shuffled},
};

pub async fn every_page_is_what_the_snapshot_has() {
    all_of("anonymous").await;
}

pub async fn shared_memory_is_served_too() {
    all_of("shared").await;
}

pub async fn memory_in_generations_is_served_too() {
    let mut host = Host::new();
    let flat = host.config.memory.open().unwrap();
    let [first, second] = ["first", "second"].map(|name| host.at(name));
    for directory in [&first, &second] {
        std::fs::create_dir(directory).unwrap();
    }
    let write = |mut writer: GenerationWriter, odd: u64| {
        for page in (0..PAGES).filter(|&page| page % 2 == odd && !is_hole(page)) {
            let mut content = [0; PAGE as usize];
            flat.read(page, 1, &mut content).unwrap();
            writer.write(page * PAGE, &content).unwrap();
        }
        writer.finish().unwrap();
    };
    write(GenerationWriter::first(&first, PAGES * PAGE), 0);
    write(GenerationWriter::after(&Generations::open(&first).unwrap(), &second), 1);
    host.config.memory = MemorySource::Generations { directory: second };
    all_from(host, "anonymous").await;
}

async fn all_of(kind: &str) {
    all_from(Host::new(), kind).await;
}

async fn all_from(host: Host, kind: &str) {
    let server = host.server().await.unwrap();
    assert_eq!(server.stats().await, Stats::default());
    let mut guest = host.guest(kind);
    guest.does("all 4 1");
    let holes = (0..PAGES).filter(|&page| is_hole(page)).count() as u64;
    let stats = server.until(|stats| stats.idle).await;
    // Each page was placed once, whoever asked for it, and most before anybody did.
    assert_eq!((stats.copied, stats.zeroed), (PAGES - holes, holes), "{stats:?}");
    assert!(stats.faults > 0 && stats.faults < PAGES / 4, "{stats:?}");
    assert_eq!((stats.removed, stats.retries, stats.prefetched), (0, 0, 0), "{stats:?}");
    println!("{PAGES} pages of {kind} memory by four threads: {stats:?}");
    guest.end();
    server.end().await;
}

pub async fn what_was_given_back_is_zeros() {
    churn("well", "anonymous").await;
}

pub async fn what_was_given_back_is_zeros_in_shared_memory() {
    churn("well", "shared").await;
}

pub async fn what_was_given_back_while_it_was_read_is_zeros() {
    churn("slowly", "anonymous").await;
}

async fn churn(how: &'static str, kind: &str) {
    let mut host = Host { how, ..Host::new() };
    // Everything is also being prefetched meanwhile.
    let working_set = record(&host, &(0..PAGES).step_by(20).collect::<Vec<_>>()).await;
    host.config.prefetch = Some(working_set);
    let mut prefetched = 0;
    for seed in 0..3 {
        let server = host.server().await.unwrap();
        let mut guest = host.guest(kind);
        guest.does(&format!("churn 4 4000 {seed}"));
        let stats = server.stats().await;
        assert!(stats.removed > 0, "{stats:?}");
        prefetched += stats.prefetched;
        println!("giving back {kind} memory, read {how}: {stats:?}");
        guest.end();
        server.end().await;
    }
    assert!(prefetched > 0);
}

/// Touches pages and has recorded which that were; where.
async fn record(host: &Host, pages: &[u64]) -> std::path::PathBuf {
    let path = host.at("working-set");
    let mut config = host.config.clone();
    config.record = Some(path.clone());
    let recording = Host { config, how: "well", directory: tempfile::tempdir().unwrap() };
    let server = recording.server().await.unwrap();
    let mut guest = recording.guest("anonymous");
    guest.does(&touch(pages));
    let recorded = server.ready().await.unwrap();
    assert!(recorded >= pages.len() as u64, "{recorded}");
    assert_eq!(server.ready().await.unwrap(), recorded, "again is fine");
    assert_eq!(server.stats().await.recorded, Some(recorded));
    guest.end();
    server.end().await;
    path
}

fn touch(pages: &[u64]) -> String {
    let pages: Vec<String> = pages.iter().map(u64::to_string).collect();
    format!("touch {}", pages.join(" "))
}

/// Scattered, so that each page's neighbours help no other.
fn scattered() -> Vec<u64> {
    shuffled(PAGES / 32, 7).into_iter().take(100).map(|group| group * 32).collect()
}

pub async fn what_the_last_restore_needed_is_there_before_it_is_asked_for() {
    let mut host = Host::new();
    let pages = scattered();
    let working_set = record(&host, &pages).await;

    let faults = async |host: &Host, prefetched: bool| {
        let server = host.server().await.unwrap();
        let mut guest = host.guest("anonymous");
        if prefetched {
            server.until(|stats| stats.idle).await;
        }
        for &page in &pages {
            guest.does(&touch(&[page]));
            // What comes with it is there before the next one is asked for.
            server.until(|stats| stats.idle).await;
        }
        let stats = server.stats().await;
        let again = server.ready().await.unwrap();
        guest.does("all 2 3");
        guest.end();
        server.end().await;
        (stats, again)
    };
    let (without, _) = faults(&host, false).await;
    assert!(without.faults >= 20, "{without:?}");
    host.config.prefetch = Some(working_set.clone());
    host.config.record = Some(working_set);
    let (with, kept) = faults(&host, true).await;
    assert!(with.faults * 10 <= without.faults, "{with:?} after {without:?}");
    println!("faults without a working set: {}, with: {}", without.faults, with.faults);
    // What was not asked for because it was there is not forgotten.
    assert!(kept >= with.prefetched, "{kept}");
    let (third, _) = faults(&host, true).await;
    assert!(third.faults > 0 && third.faults * 4 <= without.faults, "but for a part: {third:?}");
}

pub async fn what_nobody_asks_for_any_more_leaves_the_working_set() {
    let mut host = Host::new();
    let path = record(&host, &scattered()).await;
    host.config.prefetch = Some(path.clone());
    host.config.record = Some(path);
    let mut recorded = Vec::new();
    // In the first all of it is prefetched, then all but an eighth each.
    for _ in 0..9 {
        let server = host.server().await.unwrap();
        let mut guest = host.guest("anonymous");
        // Or what is asked for may be all that would have been prefetched.
        assert!(server.until(|stats| stats.idle).await.prefetched > 0);
        guest.does("touch 0");
        server.until(|stats| stats.idle).await;
        recorded.push(server.ready().await.unwrap());
        guest.end();
        server.end().await;
    }
    println!("pages in the working set: {recorded:?}");
    assert!(recorded.is_sorted_by(|before, after| before >= after), "{recorded:?}");
    assert!((1..=16).contains(recorded.last().unwrap()), "but for what is: {recorded:?}");
}

pub async fn a_damaged_working_set_does_no_harm() {
    let mut host = Host::new();
    let path = record(&host, &scattered()).await;
    let whole = std::fs::read(&path).unwrap();
    host.config.prefetch = Some(path.clone());
    let mut changed = whole.clone();
    changed[40] ^= 1;
    for damaged in [&[][..], &whole[..whole.len() / 2], &changed, b"WRENNWS2"] {
        std::fs::write(&path, damaged).unwrap();
        let server = host.server().await.unwrap();
        let mut guest = host.guest("anonymous");
        guest.does("all 2 5");
        assert_eq!(server.stats().await.prefetched, 0);
        guest.end();
        server.end().await;
    }
}

pub async fn a_restore_that_nobody_calls_ready_is_recorded_in_time() {
    let mut host = Host::new();
    host.config.record = Some(host.at("working-set"));
    host.config.record_for = std::time::Duration::from_millis(1);
    let server = host.server().await.unwrap();
    let guest = host.guest("anonymous");
    server.until(|stats| stats.recorded.is_some()).await;
    assert!(host.at("working-set").exists());
    // A directory that is not there is an error that is reported, and nothing more.
    drop(guest);
    assert_eq!(
        tokio::time::timeout(DEADLINE, server.handle().exited()).await.unwrap().to_string(),
        "exit code 0"
    );
    host.config.record = Some(host.at("nowhere/working-set"));
    host.config.record_for = DEADLINE;
    let server = host.server().await.unwrap();
    let mut guest = host.guest("anonymous");
    let error = server.ready().await.unwrap_err().to_string();
    assert!(error.contains("nowhere"), "{error}");
    guest.does("touch 1 2 3");
}
