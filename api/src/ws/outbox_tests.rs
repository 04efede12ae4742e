use futures_util::FutureExt;

use super::*;

const BOUNDS: LaneBounds = LaneBounds { bytes: 10, frames: 3, window: 1000 };

fn key(key: u64) -> OperationKey {
    OperationKey::from(key)
}

fn text(text: &str) -> Utf8Bytes {
    Utf8Bytes::from(text.to_owned())
}

fn taken(outbox: &Outbox) -> Vec<String> {
    std::iter::from_fn(|| outbox.take())
        .map(|frame| match frame {
            Frame::Text(text) => text.to_string(),
            Frame::Ping(bytes) => format!("(ping {bytes})"),
            Frame::Close(close) => format!("(close {})", close.code()),
        })
        .collect()
}

#[test]
fn lanes_take_turns() {
    let outbox = Outbox::new(LaneBounds { bytes: 1000, frames: 1000, window: 1000 });
    let (flood, tick) = (outbox.open(key(1)), outbox.open(key(2)));
    for frame in ["f1", "f2", "f3", "f4"] {
        flood.push(text(frame));
    }
    tick.push(text("t1"));
    assert_eq!(outbox.take(), Some(Frame::Text(text("f1"))));
    assert_eq!(outbox.take(), Some(Frame::Text(text("t1"))));
    tick.push(text("t2"));
    assert_eq!(taken(&outbox), ["f2", "t2", "f3", "f4"]);
}

#[test]
fn control_frames_go_first_and_do_not_pile_up() {
    let outbox = Outbox::new(BOUNDS);
    let lane = outbox.open(key(1));
    lane.push(text("event"));
    outbox.control(text("ack"));
    outbox.pong(text("pong 1"));
    outbox.pong(text("pong 2"));
    outbox.ping();
    outbox.ping();
    assert_eq!(taken(&outbox), ["(ping 0)", "pong 2", "ack", "event"]);
}

#[test]
fn a_lane_has_room_up_to_its_bytes_or_frames() {
    let outbox = Outbox::new(BOUNDS);
    let lane = outbox.open(key(1));
    lane.push(text("0123456789"));
    assert_eq!(lane.room().now_or_never(), None);
    assert!(outbox.take().is_some());
    assert_eq!(lane.room().now_or_never(), Some(true));
    for _ in 0..3 {
        assert_eq!(lane.room().now_or_never(), Some(true));
        lane.push(text("x"));
    }
    assert_eq!(lane.room().now_or_never(), None);
}

#[tokio::test]
async fn a_waiting_operation_is_woken_by_room_and_by_the_end() {
    let outbox = Outbox::new(BOUNDS);
    let lane = outbox.open(key(1));
    lane.push(text("0123456789"));
    let waiting = tokio::spawn(async move {
        assert!(lane.room().await);
        lane.push(text("0123456789"));
        lane.room().await
    });
    assert_eq!(outbox.next().await, Some(Frame::Text(text("0123456789"))));
    while outbox.waiting_since().is_none() {
        tokio::task::yield_now().await;
    }
    outbox.discard(key(1));
    assert!(!waiting.await.unwrap());
}

#[tokio::test]
async fn the_last_word_follows_the_lane_s_frames_and_frees_it_when_taken() {
    let outbox = Outbox::new(BOUNDS);
    let (ending, other) = (outbox.open(key(1)), outbox.open(key(2)));
    for frame in ["e1", "e2"] {
        ending.push(text(frame));
    }
    for frame in ["o1", "o2", "o3"] {
        other.push(text(frame));
    }
    let mut finish = std::pin::pin!(ending.finish(text("complete")));
    assert!(finish.as_mut().now_or_never().is_none());
    let first: Vec<_> = (0..3).map(|_| outbox.take().unwrap()).collect();
    assert_eq!(first, ["e1", "o1", "e2"].map(|frame| Frame::Text(text(frame))));
    assert!(finish.as_mut().now_or_never().is_none());
    assert_eq!(outbox.take(), Some(Frame::Text(text("complete"))));
    finish.await;
    assert_eq!(taken(&outbox), ["o2", "o3"]);
}

#[tokio::test]
async fn a_dropped_lane_takes_its_frames_with_it() {
    let outbox = Outbox::new(BOUNDS);
    let lane = outbox.open(key(1));
    lane.push(text("stale"));
    drop(lane);
    assert!(outbox.take().is_none());
    let ended = outbox.open(key(2));
    assert!(ended.finish(text("never taken")).now_or_never().is_none());
    assert!(outbox.take().is_none() && outbox.waiting_since().is_none());
}

#[tokio::test]
async fn closing_leaves_only_the_close() {
    let outbox = Outbox::new(BOUNDS);
    let lane = outbox.open(key(1));
    lane.push(text("event"));
    outbox.ping();
    outbox.close(Some(Close::Forbidden));
    assert!(!lane.room().await);
    lane.push(text("late"));
    assert!(!outbox.open(key(2)).room().await);
    assert_eq!(outbox.next().await, Some(Frame::Close(Close::Forbidden)));
    assert_eq!(outbox.next().await, None);
}

#[test]
fn lanes_wait_for_the_peer_to_read_and_control_frames_do_not() {
    let outbox = Outbox::new(LaneBounds { bytes: 1000, frames: 1000, window: 8 });
    let (flood, ending) = (outbox.open(key(1)), outbox.open(key(2)));
    for frame in ["f1", "f2", "f3", "f4", "f5", "f6"] {
        flood.push(text(frame));
    }
    let pings = ["f1", "(ping 2)", "f2", "(ping 4)", "f3", "(ping 6)", "f4", "(ping 8)"];
    assert_eq!(taken(&outbox), pings);
    outbox.ping();
    outbox.pong(text("pong"));
    let mut finish = std::pin::pin!(ending.finish(text("complete")));
    assert!(finish.as_mut().now_or_never().is_none());
    assert_eq!(taken(&outbox), ["(ping 8)", "pong", "complete"]);
    outbox.confirm(2);
    assert_eq!(taken(&outbox), ["f5", "(ping 10)"]);
    // Numbers that were never said, or are older than the last one, change nothing.
    outbox.confirm(1);
    assert_eq!(taken(&outbox), [""; 0]);
    outbox.confirm(1000);
    assert_eq!(taken(&outbox), ["f6", "(ping 12)"]);
}

#[test]
fn a_frame_larger_than_the_window_passes_alone() {
    let outbox = Outbox::new(LaneBounds { bytes: 1000, frames: 1000, window: 4 });
    let lane = outbox.open(key(1));
    lane.push(text("longer than the window"));
    lane.push(text("next"));
    assert_eq!(taken(&outbox), ["longer than the window", "(ping 22)"]);
    outbox.confirm(22);
    assert_eq!(taken(&outbox), ["next", "(ping 26)"]);
}
