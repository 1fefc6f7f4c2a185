//! The seeds that are always run, and what runs found.
//!
//! | seed | bug it found | fixed by |
//! |---|---|---|
//! | 1 | a write behind a sync was applied before it, and never answered | engine |
//! | 41 | a reconfig that took most votes away hung: links that it needed were cut | engine |
//! | 5109 | a leader that an earlier one had removed led on and stopped with a panic | engine |
//! | 10043 | a server with a new disk never took part if it was linked too early | engine |
//! | 31450 | a server that joined refused a leader that was to go and had to bring it up | engine |
//! | 1795677000604 | who was away refused a leader that had a new disk | engine, links |
//! | 1795679793050 | a server that was linked before it was a member never took part | engine |
//! | 1795680173760 | after a start in a change, who was to go could not be found | engine |
//! | 1795705995549 (aimed) | the same, of a start from a snapshot of the change | engine |
//! | 1795706810487 (aimed) | who had been read-only was so again at once after it led | engine |
//! | 1795713365019 (aimed, long) | an empty disk's vote elected who had been away | engine |
//! | 1795720008130 (long) | an empty disk was told to commit what a lost one had | engine |
//! | 1795706622220 | who was left alone led before its log was durable, and stopped | engine |
//! | 1795681000271 | a server was removed though the next reconfig kept it | engine |
//! | 1795681001011 | what a lost leader had confirmed kept a server from serving | engine |
//! | 1795730002959 | after a start, a change that was committed did not count | engine |
//! | 1795730450948 (long) | a reconfig left the majority to a server that was gone | engine |
//! | 1795739157542 | who was added again went by an ensemble of before, and refused all | engine |
//! | 1795772751271 (aimed, long) | a leader's own reconfig waited behind others' writes | engine |
//! | 1795775566159 (aimed, long) | who was left alone gave up writes of clients it kept | engine |
//! | 1795776661092 (long) | an end that waited for a reconfig met who was heard of | engine |
//!
//! 1795657133028 is of the checker itself: an acknowledgement of an earlier term may leave after
//! what it acknowledged was replaced. So is 1795668845170: a server that caught up last had no time
//! to close the connection of a session that went elsewhere. And 1795720000276: a change may have
//! fired before the server knew who its reader is; and 1795721000234: a leader raised the level as
//! soon as it had removed who was too old for it; and 1795707396310: a server that was removed, and
//! does not know it, keeps connections of sessions that went elsewhere for a while. 38 is there for
//! its torn tails, 48 for a server that is too old, 61 for servers that only let read, 5025 and
//! 5059 for leaders that hand over, 385, 386 and 563 for disks that rot, 1795722482187 (aimed) for
//! a change that leaves no majority since a disk is lost.
//!
//! A run with a sabotage of touches found that what was heard between two ticks counted from the
//! earlier one, so that a session could end a tick too early.
//!
//! Runs with lost disks and snapshots on their way found that a server which had lost its leader
//! stopped with a panic if its log did not know yet of the snapshot that it had been sent; that who
//! was away while others joined refused them; that a leader which was to leave asked observers to
//! lead; that strangers were never forgotten; that a server whose new disk was just being bound was
//! removed for that disk; and 1795824821398 (long) that a server was removed while another of two
//! that stay had yet to be sent a snapshot, so that nothing was decided until it had it. The tests
//! of these are in `engine::tests::cluster`.
//!
//! Of the simulator are 1795718068944 (long): what came just when a pause ended passed what had
//! come before; 1795760674105 (aimed, long, and not among those below since it takes over a
//! minute): a task that had to send first read nothing, and tried again for ever; 1795787435315 and
//! 1795789902287 (both aimed, long): where a majority founds, a wiped founder and one that had lost
//! its power before it had anything may found another cluster, which is not to be played;
//! 1795789007289 (aimed, long): who is being sent a large state need not serve yet; 1795804746492
//! (long): a learner whose disk has rot may be given one of two votes, which is beyond repair.
//! 1795816937065 (aimed, long): a removed founder that is empty, and the last other one once it is
//! wiped, found another cluster as they are configured to; 1795818866386 (long): the disk of a
//! learner has rot and keeps it from the vote that it should get, for which its operator waited;
//! 1795819765396 (long): a snapshot that a server was sent rots and is offered again, which is no
//! start.
//!
//! Of the checker are 1795719092041 (aimed, long): a client may be silent while it waits for an
//! answer;
//! 1795725859480 (long): who is added again just after it was told of its removal takes a tick to
//! show something to readers; 1795706034034 (long): a client which only reads may stay, to the end
//! of a run, with a server that was removed and does not know it. None does that any more once all
//! is well. 1795745814239 (aimed, long): what a server hears that was removed, the others do not.
//! 1795726891939 (aimed, long): who comes back to a session of its server's own is in time though
//! it does not wait; 1795738447140 (long): what a leader hears while it gathers an end that is
//! decided comes too late. 1001345: a pause that was cut took more from the time not run than it
//! had added.
//!
//! Seeds change their meaning with what is drawn from them. Those from before runs had several
//! servers found that a session ended early, since what was heard just before a connection broke
//! was lost; that tasks slept on in a pause that was cut; that the model forgot that last writes of
//! a dying client may count.
//!
//! Aimed, 1795740144201 found that a leader went again and again because a removed server, which
//! still had a link to it, went on asking for that, and that it asked several servers at a time to
//! lead instead. 1795743068561 (long): who votes alone had proposed something in a term that was
//! not durable, lost it with its power, and led the same term again. 1795762028930 (long): who was
//! left alone, and sent one more entry before its next turn, led before it had that, for which raft
//! stops the process. 1795764702131 (aimed, long): who was to go and still led was refused for ever
//! by one that had only been told of the change, and did not believe that it was needed.
//! 1795744787055 (aimed, long): a server that served for less than a tick let read only again as if
//! it had not.
//!
//! The differential test of machine and model (`differential.rs`) found that a delete of `//a`
//! removed `/a`; its test is in `tests/scripts/delete.txt`.

/// Run in every build, beside fresh ones.
pub const FIXED: &[u64] = &[
    1,
    2,
    3,
    4,
    5,
    6,
    7,
    8,
    9,
    10,
    11,
    12,
    13,
    14,
    15,
    16,
    17,
    18,
    19,
    20,
    38,
    41,
    48,
    61,
    385,
    386,
    563,
    5025,
    5059,
    5109,
    10043,
    31450,
    1795657133028,
    1795668845170,
    1795677000604,
    1795679793050,
    1795680173760,
    1795681000271,
    1795681001011,
    1795720000276,
    1795721000234,
    1795730002959,
    1795706622220,
    1795707396310,
    1795739157542,
    1001345,
];

/// Those that found something when their faults were aimed as well, and a few more.
pub const AIMED: &[u64] = &[
    1,
    2,
    3,
    4,
    1795705995549,
    1795706810487,
    1795722482187,
    1795740144201,
];

/// Those that found something in ten times the usual length, and whether their faults were aimed.
pub const LONG: &[(u64, bool)] = &[
    (1795706034034, false),
    (1795713365019, true),
    (1795718068944, false),
    (1795719092041, true),
    (1795720008130, false),
    (1795725859480, false),
    (1795726891939, true),
    (1795730450948, false),
    (1795738447140, false),
    (1795743068561, true),
    (1795744787055, true),
    (1795745814239, true),
    (1795762028930, false),
    (1795764702131, true),
    (1795772751271, true),
    (1795775566159, true),
    (1795776661092, false),
    (1795789902287, true),
    (1795816937065, true),
    (1795818866386, false),
    (1795819765396, false),
    (1795789007289, true),
    (1795787435315, true),
    (1795804746492, false),
    (1795824821398, false),
];
