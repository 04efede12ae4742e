//! What runs in the guests of these tests, to be reached from outside.

use wrenn_proto::agent::v1 as agent;
use wrenn_proto::envd::v1 as envd;

use crate::Client;
use crate::http::Proxy;
use crate::support::calls::until;

/// An HTTP/1.1 server in the guest, in Perl, of which the smallest image has enough: one process a connection.
///
/// `/echo` answers with the request's head and body, `/slow` does so a second after it made `/tmp/slow`, `/endless` answers
/// with a line every 50 ms, and an upgrade to `echo` with what it is sent, until the end.
const SERVER: &str = r#"
use IO::Socket::INET; $SIG{CHLD} = "IGNORE"; $| = 1;
my $s = IO::Socket::INET->new(LocalPort => $ARGV[0], Listen => 64, ReuseAddr => 1) or die "listen: $@";
print "up\n";
while (my $c = $s->accept) {
  next if fork; $c->autoflush(1); binmode $c;
  while (defined(my $line = <$c>)) {
    my ($head, $length, $upgrade) = ($line, 0, 0);
    while (defined(my $h = <$c>)) { last if $h eq "\r\n"; $head .= $h;
      $length = $1 if $h =~ /^content-length: (\d+)/i; $upgrade = 1 if $h =~ /^upgrade: echo/i; }
    if ($upgrade) {
      print $c "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n";
      my $b; while (sysread($c, $b, 65536)) { syswrite($c, $b); } exit;
    }
    my $body = ""; while ($length > length $body) { my $n = read($c, $body, $length - length $body, length $body); exit unless $n; }
    if ($line =~ m{ /endless}) {
      print $c "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Type: text/event-stream\r\n\r\n";
      while (print $c "6\r\ntick!\n\r\n") { select(undef, undef, undef, 0.05); } exit;
    }
    if ($line =~ m{ /slow}) { open my $f, ">", "/tmp/slow"; sleep 1; }
    my $answer = "pid $$\n$head\n$body";
    print $c "HTTP/1.1 200 OK\r\nConnection: keep-alive\r\nContent-Length: " . length($answer) . "\r\n\r\n$answer";
  }
  exit;
}
"#;

/// Starts [`SERVER`] on a port; it may not listen yet.
pub async fn serve(client: &mut Client, id: &str, port: u16) {
    let argv =
        ["/usr/bin/perl", "-e", SERVER].map(str::to_owned).into_iter().chain([port.to_string()]).collect();
    let process = Some(envd::StartRequest { argv, close_stdin: true, ..Default::default() });
    let request = agent::StartProcessRequest { capsule_id: id.to_owned(), process, keep_awake: false };
    client.start_process(request).await.unwrap();
}

/// Waits until the guest's service answers.
pub async fn listening(proxy: &Proxy, id: &str, port: u16) {
    until("the guest's server listens", async || {
        proxy.connect().await.get(id, port, "/echo").await.status == 200
    })
    .await;
}
