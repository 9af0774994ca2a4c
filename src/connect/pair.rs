//! Both ends of a connection in one process.

use std::io;
use std::os::fd::AsFd;

use super::acceptor::{AcceptFailure, Acceptor};
use super::connector::{Connector, Sealing};
use super::{Established, Step};
use crate::error::ConnectError;
use crate::options::Options;
use crate::sys::peer_monitor;
use crate::sys::socket;

/// Makes both ends of a connection within this process. Returns the client's end, then the server's.
///
/// A socketpair takes a whole handshake message at once and delivers it at once, so both sides advance in turn without
/// waiting. No other process can punch holes here, so this thread seals the memory itself.
pub(crate) fn pair(options: &Options) -> Result<(Established, Established), ConnectError> {
    let limits = options.limits().map_err(ConnectError::BadOptions)?;
    peer_monitor::start().map_err(ConnectError::io("watching for the peer's end"))?;
    let (ours, theirs) = socket::pair().map_err(ConnectError::io("making a pair of sockets"))?;
    let cred = socket::peer_cred(ours.as_fd()).map_err(ConnectError::io("reading credentials"))?;
    let mut connector = Connector::new(ours, cred, &limits, 0);
    let mut acceptor = Acceptor::of_pair(theirs, cred, 0);
    connector.advance()?; // The Hello.
    acceptor.advance(&limits, options.is_prefault()).map_err(in_pair)?; // The Accept.
    let Step::Ready = connector.advance()? else {
        return Err(ConnectError::Timeout);
    };
    let confirmed = connector.confirm(Sealing::Here)?;
    let Step::Ready = acceptor.advance(&limits, options.is_prefault()).map_err(in_pair)? else {
        return Err(ConnectError::Timeout);
    };
    let client = confirmed.finish(false)?; // The server's prefault filled the same pages.
    Ok((client, acceptor.finish().map_err(in_pair)?))
}

fn in_pair(failure: AcceptFailure) -> ConnectError {
    match failure {
        AcceptFailure::Handshake(error) => ConnectError::BadAnswer(error),
        AcceptFailure::Closed => ConnectError::PeerClosed,
        AcceptFailure::Refused(why) => {
            ConnectError::io("serving the other end")(io::Error::other(why.to_string()))
        }
        AcceptFailure::Io(source) => ConnectError::Io { doing: "serving the other end".into(), source },
    }
}
