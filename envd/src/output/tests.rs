use super::*;
use proptest::prelude::*;
use std::convert::Infallible;

const GRACE: Duration = Duration::from_secs(30);

fn write(output: &Output, stream: usize, count: u64) -> u64 {
    let mut written = 0;
    while written < count {
        let Room::Bytes(room) = output.room(stream) else { break };
        let limit = room.min((count - written) as usize);
        let Ok(n) = output.fill(stream, limit, |slot| Ok::<_, Infallible>(slot.len()));
        written += n.expect("as was said") as u64;
    }
    written
}

fn drain(output: &Output, reader: ReaderId) -> u64 {
    let mut total = 0;
    while let Next::Event(event) = output.next(reader) {
        if let Event::Output(it) = event {
            assert!(it.data.len() <= CHUNK);
            total += it.data.len() as u64;
        }
    }
    total
}

#[tokio::test(start_paused = true)]
async fn unwatched_runs_free_and_reports_the_gap() {
    let output = Output::plain(GRACE, &Arc::default());
    let much = 3 * (LIVE + HISTORY);
    assert_eq!(write(&output, 0, much), much);
    let reader = output.attach(&OutputCursor { stdout: Some(5), ..Default::default() }).expect("attach");
    let oldest = much - LIVE - HISTORY;
    let gap = ProcessGap { stream: OutputStream::Stdout.into(), from: 5, to: oldest };
    assert_eq!(output.next(reader), Next::Event(Event::Gap(gap)));
    assert_eq!(drain(&output, reader), LIVE + HISTORY);
}

#[tokio::test(start_paused = true)]
async fn the_slowest_reader_holds_back_one_stream_only() {
    let output = Output::plain(GRACE, &Arc::default());
    let slow = output.attach(&OutputCursor::default()).expect("attach");
    let fast = output.attach(&OutputCursor::default()).expect("attach");
    assert_eq!(write(&output, 0, 10 * LIVE), LIVE);
    assert_eq!(drain(&output, fast), LIVE);
    assert_eq!(output.room(0), Room::None { until: None });
    assert!(matches!(output.room(1), Room::Bytes(_)));
    output.detach(slow);
    assert_eq!(write(&output, 0, 10 * LIVE), LIVE, "a reader that left does not count");
}

#[tokio::test(start_paused = true)]
async fn a_lost_reader_is_waited_for_and_finds_its_history() {
    let output = Output::plain(GRACE, &Arc::default());
    let first = output.attach(&OutputCursor::default()).expect("attach");
    let mut delivered = 0;
    while delivered < HISTORY {
        write(&output, 0, LIVE);
        delivered += drain(&output, first);
    }
    output.detach(first);
    assert_eq!(write(&output, 0, 10 * LIVE), LIVE);
    assert!(matches!(output.room(0), Room::None { until: Some(_) }));

    let again = OutputCursor { stdout: Some(delivered - HISTORY), ..Default::default() };
    let second = output.attach(&again).expect("attach");
    let Next::Event(Event::Output(piece)) = output.next(second) else { panic!("history is there") };
    assert_eq!(piece.sequence, delivered - HISTORY);
}

#[tokio::test(start_paused = true)]
async fn the_grace_ends() {
    let output = Output::plain(GRACE, &Arc::default());
    let reader = output.attach(&OutputCursor::default()).expect("attach");
    write(&output, 0, LIVE);
    output.detach(reader);
    let Room::None { until: Some(until) } = output.room(0) else { panic!("held") };
    tokio::time::sleep_until(until).await;
    assert_eq!(write(&output, 0, 10 * LIVE), 10 * LIVE);
}

#[tokio::test(start_paused = true)]
async fn exited_comes_last_and_only_when_all_has_ended() {
    let output = Output::plain(GRACE, &Arc::default());
    let reader = output.attach(&OutputCursor::default()).expect("attach");
    output.set_exit(Exit::Code(3));
    output.end(1);
    assert_eq!(output.next(reader), Next::Wait);
    write(&output, 0, 2);
    output.end(0);
    assert_eq!(drain(&output, reader), 2);
    assert_eq!(output.next(reader), Next::Exited(Exit::Code(3).to_event()));
    output.detach(reader);
    assert!(matches!(output.room(0), Room::Bytes(_)), "nothing is held for an ended output");
}

#[tokio::test(start_paused = true)]
async fn idle_is_who_says_nothing_to_nobody() {
    let output = Output::terminal(GRACE, &Arc::default());
    let begun = Instant::now();
    let later = async || {
        tokio::time::advance(Duration::from_secs(1)).await;
        Instant::now()
    };
    later().await;
    assert_eq!(output.idle_since(), Some(begun));
    let written = later().await;
    write(&output, 0, 1);
    assert_eq!(output.idle_since(), Some(written));
    let reader = output.attach(&OutputCursor::default()).expect("attach");
    later().await;
    assert_eq!(output.idle_since(), None, "somebody reads");
    let left = later().await;
    output.detach(reader);
    later().await;
    assert_eq!(output.idle_since(), Some(left));
}

#[tokio::test(start_paused = true)]
async fn a_cursor_from_the_future_is_refused() {
    let output = Output::terminal(GRACE, &Arc::default());
    let ahead = OutputCursor { pty: Some(1), ..Default::default() };
    assert!(matches!(output.attach(&ahead), Err(BeyondEnd { wanted: 1, written: 0 })));
    assert!(output.attach(&OutputCursor { stdout: Some(9), ..Default::default() }).is_ok());
}

/// Bytes that are held of stdout.
fn held(output: &Output) -> usize {
    lock(&output.state).streams[0].ring.held()
}

fn footprint(output: &Output) -> usize {
    lock(&output.state).streams.iter().map(|it| it.ring.footprint()).sum()
}

#[tokio::test(start_paused = true)]
async fn what_has_ended_gives_first_then_who_is_quiet() {
    let budget = Arc::new(Budget::new(3 * MOST));
    let plain = || Output::plain(GRACE, &budget);
    let [ended, ended_later, quiet, busy, late, later] = [(); 6].map(|()| plain());
    let much = 2 * MOST as u64;
    for output in [&ended, &ended_later] {
        write(output, 0, much);
        output.set_exit(Exit::Code(0));
        output.end(0);
        output.end(1);
        tokio::time::advance(Duration::from_secs(1)).await;
    }
    write(&quiet, 0, much);
    write(&busy, 0, much);
    assert!([&ended, &ended_later].map(held).iter().all(|it| *it > 0), "a reader may be on its way back");
    tokio::time::advance(GRACE).await;

    write(&busy, 0, much);
    assert_eq!([&ended, &ended_later, &quiet, &busy].map(held), [0, MOST, MOST, MOST]);
    write(&late, 0, much);
    assert_eq!([&ended_later, &quiet, &busy, &late].map(held), [0, MOST, MOST, MOST]);
    write(&later, 0, much);
    assert_eq!([&quiet, &busy, &late, &later].map(held), [MOST / 2, MOST, MOST, MOST / 2]);
    let reader = ended.attach(&OutputCursor { stdout: Some(1), ..Default::default() }).expect("attach");
    let gap = ProcessGap { stream: OutputStream::Stdout.into(), from: 1, to: much };
    assert_eq!(ended.next(reader), Next::Event(Event::Gap(gap)));
    assert_eq!(ended.next(reader), Next::Exited(Exit::Code(0).to_event()));
}

#[tokio::test(start_paused = true)]
async fn many_share_and_what_is_read_comes_first() {
    let budget = Arc::new(Budget::new(2 * MOST));
    let outputs: Vec<_> = (0..20).map(|_| Output::plain(GRACE, &budget)).collect();
    let much = 2 * MOST as u64;
    for output in outputs.iter().chain(&outputs) {
        assert_eq!(write(output, 0, much), much);
    }
    let sizes: Vec<_> = outputs.iter().map(held).collect();
    let (least, most) = (sizes.iter().min().expect("some"), sizes.iter().max().expect("some"));
    assert!(
        sizes.iter().sum::<usize>() <= 2 * MOST && *least >= budget::LEAST && most <= &(2 * least),
        "{sizes:?}"
    );

    let read = Output::plain(GRACE, &budget);
    let reader = read.attach(&OutputCursor::default()).expect("attach");
    for _ in 0..much / LIVE {
        let written = write(&read, 0, LIVE);
        assert_eq!(drain(&read, reader), written);
    }
    let left: Vec<_> = outputs.iter().map(held).collect();
    assert!(left.iter().all(|it| *it >= budget::LEAST), "{left:?}");
    assert!(held(&read) >= MOST / 2, "{} and {left:?}", held(&read));
    assert!(outputs.iter().chain([&read]).map(footprint).sum::<usize>() <= 2 * MOST);

    // Who comes later gets as much as everybody is left, from who has more.
    let late: Vec<_> = (0..8).map(|_| Output::plain(GRACE, &budget)).collect();
    for output in &late {
        write(output, 0, much);
    }
    let left: Vec<_> = outputs.iter().chain(&late).chain([&read]).map(held).collect();
    assert!(left.iter().all(|it| *it >= budget::LEAST), "{left:?}");
}

/// What one of several processes and its readers do.
#[derive(Debug, Clone, Copy)]
enum Act {
    Write(usize),
    Attach,
    Read,
    Detach,
    End,
}

fn acts() -> impl Strategy<Value = Vec<(usize, Act)>> {
    let act = prop_oneof![
        4 => (1..3 * CHUNK).prop_map(Act::Write),
        1 => Just(Act::Attach),
        4 => Just(Act::Read),
        1 => Just(Act::Detach),
        1 => Just(Act::End),
    ];
    proptest::collection::vec((0..6usize, act), 0..300)
}

proptest! {
    #[test]
    fn whoever_reads_misses_nothing_and_all_stay_within_the_budget(acts in acts(), limit in 0..MOST) {
        let budget = Arc::new(Budget::new(limit));
        // Those without grace are quiet or settled as soon as nobody reads.
        let graces = [GRACE, Duration::ZERO].into_iter().cycle();
        let outputs: Vec<_> = graces.take(6).map(|grace| Output::plain(grace, &budget)).collect();
        let mut readers: Vec<Vec<(ReaderId, u64)>> = vec![vec![]; outputs.len()];
        let byte = |offset: u64| (offset % 251) as u8;
        for (index, act) in acts {
            let (output, readers) = (&outputs[index], &mut readers[index]);
            match act {
                // Also more than there is room for, as one who asked for it before another took it.
                Act::Write(count) if !lock(&output.state).streams[0].ended => {
                    let (_, head) = (output.room(0), output.written(0));
                    let Ok(_) = output.fill(0, count, |slot| {
                        slot.iter_mut().zip(head..).for_each(|(it, offset)| *it = byte(offset));
                        Ok::<_, Infallible>(slot.len())
                    });
                }
                Act::Attach => {
                    let oldest = lock(&output.state).streams[0].ring.oldest();
                    readers.push((output.attach(&OutputCursor::default()).expect("attach"), oldest));
                }
                Act::Read => for (reader, due) in readers {
                    match output.next(*reader) {
                        Next::Event(Event::Output(it)) => {
                            prop_assert_eq!(it.sequence, *due);
                            prop_assert!(it.data.iter().zip(*due..).all(|(it, offset)| *it == byte(offset)));
                            *due += it.data.len() as u64;
                        }
                        Next::Event(other) => prop_assert!(false, "{other:?}"),
                        Next::Exited(_) | Next::Wait => prop_assert_eq!(*due, output.written(0)),
                    }
                },
                Act::Detach => readers.drain(..).for_each(|(reader, _)| output.detach(reader)),
                Act::End => {
                    output.set_exit(Exit::Code(0));
                    output.end(0);
                    output.end(1);
                }
                Act::Write(_) => {}
            }
            let occupied = outputs.iter().map(footprint).sum::<usize>();
            prop_assert!(occupied <= limit + outputs.len() * FIRST, "{occupied} of {limit}");
        }
    }
}
