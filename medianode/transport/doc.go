// Package transport is how viewers reach the node: ICE and DTLS for each of
// them, over the one UDP port and the one TCP port that all of them share. The
// session package says what is sent; this one says where, and proves to whom.
//
// A Port owns the sockets. Port.Open makes a viewer's Transport, with ICE
// credentials of its own. From then on everything happens by what the viewer
// sends:
//
//   - ICE (RFC 8445), as the controlled agent. The node has host candidates
//     only, over UDP and passive TCP (RFC 6544). It answers checks that have the
//     session's credentials, and checks each address that such a check came from
//     by one of its own, so that nothing but these is ever sent to an address that
//     has not answered; that is what makes it a full agent and not ICE-lite. Addresses
//     that the viewer names are checked too, some times in a row, which opens a
//     firewall on the node's side that lets answers in. Names are not resolved and
//     nothing is dialled over TCP: a browser's .local candidates are left alone.
//   - The path for media is the one that the viewer nominated last. Of those that
//     it nominates at once at first, and before it has nominated any, it is the
//     best that has answered: UDP before TCP, then by the priority of the viewer's
//     checks. One that has been silent for some seconds is left for another.
//   - DTLS (RFC 5764), as the server, with one certificate for all viewers for
//     the life of the process. The viewer's certificate must have one of the
//     fingerprints of its offer. The keys are for the caller.
//   - SRTCP is authenticated, decrypted and handed to the caller.
//
// A viewer is alive while there is something of it that nobody could have
// recorded: an answer to a fresh check of ours (consent, RFC 7675), which each
// check of the viewer's brings once in two seconds at most, or SRTCP.
// Transport.Silence says for how long there has been nothing.
//
// No goroutine ticks for a viewer. The UDP socket has one reader for all, a TCP
// connection has a reader and a writer, and pion/dtls has its own for each DTLS
// connection, as long as that is open: it is how a viewer's goodbye is heard.
package transport
