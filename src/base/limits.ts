/**
 * Every limit of Cowbell, with its reason. Nothing is unbounded (promise 9): reaching a limit is a clear
 * error or back-pressure, never growth.
 */

import { KIB, MIB } from './units.ts';

export const LIMITS = {
  /** The smallest addressable unit: what every disk and every NBD client knows. */
  blockSizeBytesMin: 512,
  /** A page: what clients should prefer, so that the page cache never reads to complete a write. */
  blockSizeBytesPreferred: 4 * KIB,

  trackSizeBytesMin: 4 * KIB,
  trackSizeBytesMax: MIB,
  /** Coarse enough that a bitmap of 1 TiB is at most 2 MiB, fine enough that a hit copies little. */
  trackSizeBytesDefault: 64 * KIB,
  /** Track numbers are uint32, in memory and on disk. */
  trackCountMax: 2 ** 32,

  /** Points that are known to be readable in a chain: that of each store's last set, and of what it builds on. */
  deltaReadablePointsMax: 256,
  /** Tracks that cannot be read and are repaired at one opening: a disk with more is no good. */
  repairTrackCountMax: 256,
  /** Tracks that a disk does not take back at one opening: after so many nothing of it is repaired any more. */
  repairBadTrackCountMax: 3,
  /** How often a served volume is looked after: a home that was deleted takes writes for so long at the most. */
  volumeCareMs: 1_000,
  /** How often the segment of regions in doubt is turned over at the most, in milliseconds: a sync for each cold region. */
  dirtyTurnMs: 30_000,
  /** Tracks of one region, the unit in which the intent log knows what may have been written. */
  intentRegionTracks: 128,
  /** Regions that are logged together with one that follows a written one: a stream is told of in advance. */
  intentAheadRegions: 4,
  /** Regions of the epoch before that a new epoch's segment begins with, where there are no more than this. */
  intentHotRegionsMax: 4_096,

  /** Snapshots of one volume: each one not saved yet costs a look at every read of the ones before it. */
  snapshotCountMax: 256,
  /** Volumes that freeze at one instant: each one's writes wait for the slowest. */
  groupVolumeCountMax: 64,
  /** Characters of a snapshot's name. */
  snapshotNameLengthMax: 64,
  /** Tracks that one sync of a snapshot's store covers at most. */
  snapshotBatchTracksMax: 64,
  /** Copies for snapshots under way beyond which none is begun ahead of its write. */
  snapshotCopiesAheadMax: 64,
  /** Buffers that copies for a volume's snapshots keep for the next ones: a batch of tracks of the usual size. */
  snapshotIdleBufferBytesMax: 4 * MIB,
  /** Tracks on their way from a snapshot that is being deleted to the older one, or back to the home. */
  snapshotMoveTracksMax: 32,

  /** A clone of a snapshot is made durable, and may be cancelled, after each step of this size. */
  cloneStepBytes: 64 * MIB,

  /** How long a freeze may wait for the gate to empty before it reopens it and fails. */
  freezeWaitMsMax: 5_000,
  /**
   * A volume under recovery is filled in runs of this size at most: large enough for the disk and for a frame of a store
   * to be unpacked once, small enough for somebody's read to come between.
   */
  fillRunBytesMax: MIB,
  /** Runs of a fill under way at once; each has a buffer of its own. */
  fillRunCountMax: 4,
  /** After so many tracks in a row that cannot be read a fill gives up: it is not the tracks that are damaged. */
  fillFailuresInARowMax: 64,
  /** What was used of late is known by regions of this size at least ... */
  recentRegionBytesMin: MIB,
  /** ... of which there are so many at most: 256 KiB of stamps ... */
  recentStampCountMax: 65_536,
  /** ... and of which so many are kept: a recovery begins with them. */
  recentRegionCountMax: 1024,
  /** Reads of a mirror go to one member for as long: readahead pays, and a busy place is in one page cache only. */
  mirrorReadRegionBytes: 16 * MIB,
  /** A rebuild or scrub of a mirror that is used rests as long as it has worked, and never longer than this. */
  mirrorRestMsMax: 100,
  /** A member of a mirror that is away is tried again after this long at first ... */
  mirrorRetryMsMin: 1_000,
  /** ... and never more rarely than this. */
  mirrorRetryMsMax: 60_000,
  /** Differences that a scrub names; all are counted. */
  scrubDifferencesShownMax: 100,
  /** Parts of a home, and members of one part; each has a descriptor, and every write goes to all of a mirror. */
  layoutExtentCountMax: 256,
  layoutMemberCountMax: 16,
  /** A file that describes a home. */
  layoutFileBytesMax: MIB,
  /** Where stripes are not said: most requests lie in one, and one of 1 MiB keeps four disks busy. */
  stripeBytesDefault: 256 * KIB,
  /** Media of one fill that a request names; a loader needs one place for all of them. */
  fillMediumCountMax: 256,
  /** A fill that failed is tried again after this long at first ... */
  fillRetryMsMin: 1_000,
  /** ... and never more rarely than this. */
  fillRetryMsMax: 60_000,
  /** Trims and zeroes are cut into pieces of this size, so that none holds a freeze for long. */
  zeroPieceBytesMax: 64 * MIB,
  /** Trims put off because a point still needs the blocks; more are forgotten, which a trim allows. */
  deferredTrimCountMax: 65_536,
  /** Tracks written since the last flush that are known one by one, 64 KiB of them; more are known by region. */
  unflushedTrackCountMax: 16_384,
  /** Boundaries that consumers and snapshots may keep from folding; beyond it the oldest consumers' fold too. */
  pointCountMax: 4_096,
  /**
   * The newest points do not fold, whoever needs them: a store that has lost its newest sets asks for one before, and
   * an NBD client may ask for any.
   */
  pointRecentCount: 8,
  /** Folded points that are still answered, from an older boundary; one takes some 100 bytes. */
  pointAliasCountMax: 4_096,
  /** Stores whose last session may have left a set that the volume was not told of ... */
  pointClaimantCountMax: 256,
  /** ... and points kept for each of them: those of some full backups in a row that failed, and a base. */
  pointClaimCountMax: 4,

  /** One segment of a delta log: what is given back at once when a log goes, and made in advance while one fills. */
  deltaSegmentBytes: 64 * MIB,
  /** A segment holds its header and some records at least. */
  deltaSegmentBytesMin: 64 * KIB,
  /** A member of little room has smaller segments, so that there are at least so many. */
  deltaSegmentCountMin: 16,
  /** A member with no room left lets so many segments beyond it begin a log: the backup that frees room needs one. */
  deltaSegmentsOverMax: 4,
  /** Payload of one delta record: it is checked as a whole, and read as a whole for a part of it. */
  deltaRecordBytesMax: MIB,
  /** Payloads up to this size are copied behind their header, which costs less than a call of their own. */
  deltaCopyBytesMax: 32 * KIB,
  /** Members of one delta store: each write waits for all. */
  deltaMemberCountMax: 8,
  /** Tracks of which the logs hold a part, known by blocks; of more it is not known when they become whole. */
  deltaPartTrackCountMax: 262_144,
  /** In a volume's history writes further apart than this are two bursts. */
  historyBurstMs: 2_000,
  /** What a reader of delta logs reads at once while it looks for records. */
  deltaScanBytes: MIB,

  /** Targets of copies that a volume remembers the point of; each may keep a boundary. */
  copyRecordCountMax: 64,

  /** Asynchronous native calls at once in the process; each holds a thread of Node's pool, and koffi fails at 257. */
  nativeCallCountMax: 2,
  /** One fallocate call covers at most this: a hole of 512 MiB took 223 ms. */
  punchBytesMax: 64 * MIB,
  /**
   * Reads and writes of a file up to this size are tried at once, larger ones go to the thread pool. Copying 1 MiB
   * takes less than the way to a thread and back costs the processors.
   */
  smallIoBytesMax: MIB,
  /** A call made at once is slow from here on: what the page cache serves takes a tenth of it at most ... */
  paceSlowCallMs: 0.25,
  /** ... and besides what its bytes may take: copying 1 MiB takes about 0.1 ms where the pages are there. */
  paceCopyMsPerMib: 0.5,
  /** Slow calls are added up over this time ... */
  paceWindowMs: 100,
  /** ... and where they take more than this of it, such calls move to the thread pool. */
  paceBlockedMsMax: 5,
  /** A call on the pool is slow from here on; the way there and back is in it. */
  pacePooledSlowMs: 2,
  /** So many calls on the pool in a row must not be slow before one is made at once again. */
  paceFastCountMin: 16,
  /** How long calls stay on the pool at least; doubled each time that coming back was a mistake ... */
  paceRestMsMin: 100,
  /** ... up to this: one slow call in half a minute hurts nobody. */
  paceRestMsMax: 30_000,
  /** Where zeroes must be written out, one write holds at most this many. */
  zeroWriteBytesMax: MIB,

  /** NBD's own recommendation for the largest payload; larger requests are refused. */
  nbdPayloadBytesMax: 32 * MIB,
  /** An export's name, as the protocol text asks. */
  nbdNameBytesMax: 4_096,
  /** Bytes of one option's data; the longest legal option is a name and a list of contexts. */
  nbdOptionBytesMax: 64 * KIB,
  /** Options before a client must have chosen an export, so that a handshake ends. */
  nbdOptionCountMax: 64,
  /** How long a client may take for its handshake. */
  nbdHandshakeMsMax: 10_000,
  nbdConnectionCountMax: 256,
  /** Requests of one connection that run at once; beyond it the socket is not read. */
  nbdInFlightCountMax: 256,
  /** What the connections of one server share out evenly for requests and replies not taken yet. */
  nbdMemoryBytesMax: 256 * MIB,
  /** Payload bytes of one connection's running requests; beyond it the socket is not read. */
  nbdInFlightBytesMax: 64 * MIB,
  /** Payload bytes of one connection's writes that wait for a backup (promise 8), counted apart. */
  nbdWaitingBytesMax: 64 * MIB,
  /** Requests of one connection that wait for a backup: zeroes and trims carry no bytes to count. */
  nbdWaitingCountMax: 16_384,
  /**
   * Reply bytes a client has not taken yet, beside what its socket holds; beyond it its requests are not read. What is
   * read from the device long before it can be sent has left the processor's cache by then.
   */
  nbdReplyBytesMax: MIB,
  /** Replies wait for those of the same turn until they are this many bytes together; one of 64 KiB does not. */
  nbdReplyBatchBytes: 48 * KIB,
  /** Large buffers that the process keeps for later requests. */
  nbdIdleBufferBytesMax: 64 * MIB,
  /** What a Unix socket may hold of replies, in the kernel: two of 1 MiB. */
  nbdSendBufferBytes: 2 * MIB,
  /** What one read of a socket takes at most: a batch of small requests, or a small write and its bytes. */
  nbdInputBytesMax: 256 * KIB,
  /** Metadata contexts of one connection, and queries of one option; each is asked in every block status. */
  nbdMetaContextCountMax: 64,
  /** Extents in the answer of one context; the protocol's text allows 2^20, which would be 16 MiB. */
  nbdExtentCountMax: 32_768,
  /** What one NBD_CMD_CACHE reads at most: it is a hint. */
  nbdCacheBytesMax: 32 * MIB,
  /** Reads from this size on leave out what the device knows to be zero, where the client can be told. */
  nbdSparseReadBytesMin: 2 * MIB,
  /** How long a client may take for the last replies and its own goodbye once the server wants to close. */
  nbdCloseMsMax: 5_000,
  /** How long a client waits for a connection and its handshake. */
  nbdConnectMsMax: 10_000,
  /** Sockets of one kernel device; more only cost memory, since one server process answers them all. */
  kernelConnectionCountMax: 16,
  /** A lost connection of a kernel device is tried again after this time, which doubles ... */
  kernelRetryMsMin: 100,
  /** ... up to this: a filesystem waits for it, and a server that starts takes longer than one attempt costs. */
  kernelRetryMsMax: 2_000,
  /** One wait for a kernel device's news; it is how long a supervisor may take to heed its end. */
  kernelWaitMsMax: 500,
  /** A file of certificates or keys; lists of revoked certificates are the long ones. */
  tlsFileBytesMax: 16 * MIB,
  /** A pre-shared key, and its user's name: what OpenSSL takes. */
  tlsKeyBytesMax: 512,
  tlsUsernameBytesMax: 256,
  /** Exports a client takes from one server's list. */
  nbdListedExportCountMax: 65_536,

  /**
   * Sets of a chain from which on `auto` takes a full one: whoever reads a chain has each of its sets open and mapped.
   * It is two days and a half of backups every quarter of an hour; merging makes a chain short again.
   */
  chainSetCountDefault: 256,
  /** What may be asked for instead; a process may have 1024 files open where nobody raised that. */
  chainSetCountMax: 960,
  /** Tracks are stored together up to this size, so that LMDB's overflow pages cost next to nothing. */
  frameBytesMax: MIB,
  /** What a growing file in bulk is written back and dropped by; it may hold twice that in the page cache. */
  writeBehindBytes: 16 * MIB,
  /** Tracks a session's lane reads, hashes and confirms in one go; each asks the session's processes once. */
  sessionRunBytesMax: 2 * MIB,
  /** Diverted content handed to the worker in one reply. */
  sessionDrainBytesMax: MIB,
  /** A session that may read less than this has one lane; starting a thread takes as long as saving that much. */
  laneBytesMin: 64 * MIB,
  /** Other disks that one set is spread over. */
  laneDirectoryCountMax: 15,
  /** Levels of zstd: fast ones below 0, and up to where memory grows beyond bounds. */
  compressionLevelMin: -7,
  compressionLevelMax: 19,
  /** Threads of a session; more compress faster than disks take it. */
  laneThreadCountMax: 4,
  /** Default room of the intermediate container. */
  containerBytesDefault: 64 * MIB,
  containerAreaCountMax: 16,
  /** How long a write may wait for room before its backup fails, where that is asked for: from a moment ... */
  containerWaitMsMin: 100,
  /** ... to what a client has given up long before. */
  containerWaitMsMax: 3_600_000,
  /** What the kernel's NBD client and most filesystems bear without a word. */
  containerWaitMsDefault: 30_000,

  /** Sun path limit of Linux without the closing zero; Node would cut a longer one silently. */
  socketPathBytesMax: 107,
  /** One line of the control protocol. */
  controlLineBytesMax: MIB,
  controlConnectionCountMax: 64,
  /** Extents that one answer to `snapshot-changes` has at most; it is one line. */
  controlExtentCountMax: 4096,
  /** Requests of one control connection that run at once. */
  controlInFlightCountMax: 16,

  /** A freeze hook's command; the kernel takes one argument of 128 KiB. */
  hookCommandBytesMax: 16 * KIB,
  /** A freeze hook may take from this ... */
  hookTimeoutMsMin: 1_000,
  /** ... up to this: a client stands still meanwhile. */
  hookTimeoutMsMax: 600_000,
  hookTimeoutMsDefault: 30_000,
  /** What tells the operator of a session's end may take. */
  notifyTimeoutMs: 30_000,
  /** What a freeze hook that has to end may take to clean up, before it is killed. */
  hookGraceMs: 2_000,
  /** The end of a freeze hook's error output that is kept. */
  hookErrorBytesMax: 4 * KIB,

  /** LMDB's own default; longer keys would need other page sizes. */
  databaseKeyBytesMax: 511,
  /** One frame, or one group of metadata, with room to spare; LMDB keeps a value in one run of pages. */
  databaseValueBytesMax: 64 * MIB,

  /** The store's lock is held for moments; whoever holds it this long hangs. */
  storeLockWaitMsMax: 30_000,
  /** A set's writer lets readers in at once after the rename; whoever holds the lock this long is removing it. */
  leaseWaitMsMax: 500,
  /** Sets whose files a removal holds locked at once: each takes a descriptor. */
  removalSetCountMax: 64,
  /** Passphrases and key files that open one store; each wrong passphrase is tried on all of them. */
  keySlotCountMax: 16,
  /** The file of a store's keys, with room to spare for white space. */
  keysFileBytesMax: 64 * KIB,
  /** What the slot of a passphrase may ask for in memory ... */
  scryptMemoryBytesMax: 256 * MIB,
  /** ... and in work, `n * r * p`: eight times what is written today. */
  scryptWorkMax: 2 ** 23,
  /** A passphrase, which is sent to a server in one line. */
  passphraseBytesMax: 4 * KIB,
  /** A key file must have at least a key's worth of random bytes ... */
  keyFileBytesMin: 32,
  /** ... and is read into memory. */
  keyFileBytesMax: MIB,
  /** A store's log of sessions, or of media; twice that with the one before. */
  logBytesMax: MIB,
  setNameBytesMax: 255,
  remapRowCountMax: 1_000_000,
  /** A remap file of the most rows, written with generous white space; it is parsed in memory. */
  remapFileBytesMax: 256 * MIB,
  /** Devices of one restore; each costs a descriptor and a lock. */
  restoreTargetCountMax: 256,
  /** Writes of a restore in flight at once; each holds a frame in memory. */
  restoreWriterCountMax: 64,
  /** A restore zeroes in pieces of this size, so that cancelling and progress are not held up. */
  restoreZeroBytesMax: 32 * MIB,
  /** Unpacked frames that are kept of a set that is read as a device. */
  chainCacheBytesMax: 64 * MIB,
  /** What is read ahead of a stream on such a device: some frames for each thread. */
  chainReadAheadBytes: 6 * MIB,
  /** Frames that are being read for such a device at once; each is unpacked in memory. */
  chainLoadCountMax: 8,
  /** Tracks in a row that a restore writes at once; a single track may be as large. */
  restoreWriteBytesMax: MIB,
  /** Read back of a target at once, each in memory; no less than a track. */
  restoreReadBytesMax: MIB,
  /** Written between two notes of how far a restore has come: a second or two of a disk, to be written anew. */
  restoreCheckpointBytes: 256 * MIB,
  /** The progress file of a restore, parsed in memory: a bit for each of 2^30 tracks, as text. */
  progressFileBytesMax: 256 * MIB,
  /** What a copy reads, confirms and writes in one go: larger than what a file tries at once, clients come first. */
  copyRunBytesMax: 2 * MIB,
  /** How many of these it does at once, each a buffer in memory and at most one call on the thread pool. */
  copyRunCountMax: 4,
  /** A copy flushes a target after so much: one sync of all at its end would hold up whoever else syncs on that disk. */
  copyFlushBytes: 64 * MIB,

  /** Steps of a session on media that are kept for its status: 128 media. */
  mediaStepCountMax: 512,
  /** What gathers of one set before it goes to a medium as one piece; a tape starts and stops for less. */
  mediaPieceBytes: 8 * MIB,
  /** Sets that are written to media at once, a piece of each in memory. */
  mediaStreamCountMax: 4,
  /** Sets of one writing: each is announced at the beginning of every medium. */
  mediaSetCountMax: 4_096,
  /** A header, directory or catalog of a medium, read into memory. */
  mediaTextBytesMax: 64 * MIB,
  /** The set of tracks that a set announces; beyond a volume of 2^32 tracks there is none. */
  mediaTracksBytesMax: 640 * MIB,
  /** One record of a piece: a frame, or a group of metadata. */
  mediaRecordBytesMax: 66 * MIB,
  /** Times that a wrong medium is refused before the session gives up. */
  mediaLoadAttemptsMax: 3,
  /** What a command that loads a medium may take: somebody may have to fetch it. */
  mediaLoadMsMax: 3_600_000,
  /** One write to a tape; its standard tools read it with `tar -b 128`. */
  mediaBlockBytes: 64 * KIB,

  /** A file of `serve --config`, which is read as a whole. */
  configBytesMax: MIB,
  /** Policies of one volume; its status, with all their outcomes, is one line of the control protocol. */
  policyCountMax: 32,
  /** Outcomes that are kept of each policy. */
  policyOutcomeCountMax: 16,
  /** Characters of an outcome's reason that are kept. */
  policyReasonLengthMax: 240,
  /** How often the conditions that are not of the clock are looked at; also a queued policy, at a volume that is busy. */
  policyPollMs: 5_000,
  /** A policy that failed is tried again after this, after twice that where it fails again ... */
  policyRetryMsMin: 60_000,
  /** ... and so on up to this. */
  policyRetryMsMax: 3_600_000,
  /** From when on a policy that is due and has not begun is overdue, where nothing is told. */
  policyGraceMsDefault: 3_600_000,
  /** The longest time between two of a policy, a leap year. */
  policyEveryMsMax: 366 * 24 * 3_600_000,
} as const;
