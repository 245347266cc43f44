/**
 * The process that reads a set of a store, with what delta logs tell since where there are some: opens it, holds its chain's leases, and serves the volume as it was over NBD
 * on a socket that only its parent knows. The process around it (signals, exit) is the command line's.
 *
 * It is a process of its own because a store is read through memory maps: a file of it that is cut short or cannot be
 * read ends the process that looks at it (DESIGN section 2), which must not be the one that serves.
 *
 * The first frames are read here. A reader that wants more gets threads, which take longer to start than a few frames
 * take to read. Those that cannot be started are done without.
 */

import {
  deferred,
  LIMITS,
  type MaybePromise,
  present,
  toWireError,
  unreachable,
  type WireError,
} from '../base/index.ts';
import {
  type ChainPlanEntry,
  type ChainView,
  type StoredTrack,
  type StoreKey,
  ThreadedChain,
} from '../blockset/index.ts';
import { type BlockDevice, LayerDevice } from '../device/index.ts';
import { NbdServer } from '../nbd/index.ts';
import { ChainDevice, LoggedSource, type ReadPlanEntry, type RestoreSource } from '../restore/index.ts';
import { type TrackRun, TrackSet } from '../tracks/index.ts';
import { type OpenedContent, openContent } from './content-source.ts';
import { openSocketPath } from './socket-path.ts';
import {
  type CallGives,
  type CallMessage,
  type ChildMessage,
  isParentMessage,
  type StartMessage,
} from './store-reader-messages.ts';

/** Frames that are read before threads are started. */
const FRAMES_ALONE = 16;
/** Reads that failed and can still be asked about. */
const FAILURE_COUNT_MAX = 256;

/** The channel to the parent. */
export interface StoreReaderChannel {
  /** Resolves when the message is on its way. */
  send(message: unknown): Promise<void>;
  onMessage(listener: (message: unknown) => void): void;
}

/**
 * Serves one set until the parent says that it is over, or that it cannot be read was told. The process then has to end;
 * with the channel, too.
 *
 * @param chainProgram the module that threads run; it calls `runChainThread`.
 */
export async function runStoreReader(channel: StoreReaderChannel, chainProgram: string): Promise<void> {
  const send = (message: ChildMessage): Promise<void> => channel.send(message);
  const ended = deferred();
  let reader: Reader | undefined;
  const start = await new Promise<StartMessage>((resolve) => {
    channel.onMessage((message) => {
      if (!isParentMessage(message)) return;
      if (message.kind === 'start') resolve(message);
      else if (message.kind === 'end') ended.resolve();
      else void reader?.answer(message).then(send);
    });
  });
  try {
    reader = await Reader.open(start, chainProgram);
    await send(reader.ready());
    await ended.promise;
  } catch (error) {
    await send({ kind: 'failed', error: toWireError(error) });
  }
}

class Reader {
  readonly #content: OpenedContent;
  readonly #tracks: TrackSet;
  readonly #device: Pick<ChainDevice<ReadPlanEntry>, 'order'> & BlockDevice;
  readonly #exported: ExplainedDevice;
  readonly #orders = new Map<number, AsyncGenerator<readonly TrackRun[], void, undefined>>();

  private constructor(content: OpenedContent, start: StartMessage, chainProgram: string) {
    this.#content = content;
    const { storePath, key } = start;
    const { chain, index, set } = content;
    const reading = chain && new ChainReading(chain, { storePath, key, program: chainProgram });
    if (index !== undefined) {
      const source = new LoggedSource(reading, index);
      const description = `volume ${set.volumeName} from its delta logs`;
      this.#tracks = source.tracks();
      this.#device = new ChainDevice(source, {
        description:
          chain === undefined ? description : `set ${set.set} of store ${storePath} with delta logs`,
      });
    } else {
      const source = present(reading, 'Without logs there is a set');
      this.#tracks = source.tracks();
      this.#device = new ChainDevice(source, { description: `set ${set.set} of store ${storePath}` });
    }
    this.#exported = new ExplainedDevice(this.#device);
  }

  /** @throws as `openContent` does. */
  static async open(start: StartMessage, chainProgram: string): Promise<Reader> {
    const reader = new Reader(await openContent(start), start, chainProgram);
    // What fails is asked about by the one client there is.
    const server = new NbdServer({
      exports: [{ name: '', description: '', device: reader.#exported, readOnly: true, multiConn: true }],
    });
    const { address } = await openSocketPath(start.socketPath);
    await server.listen({ kind: 'unix', path: address });
    return reader;
  }

  ready(): ChildMessage {
    const { set, logs } = this.#content;
    return { kind: 'ready', set, logs, tracks: this.#tracks.serialize() };
  }

  async answer(call: CallMessage): Promise<ChildMessage> {
    const { id } = call;
    try {
      return { kind: 'answer', id, gives: await this.#perform(call) };
    } catch (error) {
      return { kind: 'answer', id, error: toWireError(error) };
    }
  }

  async #perform(call: CallMessage): Promise<CallGives> {
    switch (call.name) {
      case 'order': {
        const tracks = TrackSet.deserialize(Buffer.from(call.tracks), 'the call for an order');
        this.#orders.set(call.id, this.#device.order(tracks));
        return undefined;
      }
      case 'more': {
        const next = await this.#orders.get(call.order)?.next();
        if (next?.done === false) return next.value;
        this.#orders.delete(call.order);
        return [];
      }
      case 'leave':
        await this.#orders.get(call.order)?.return();
        this.#orders.delete(call.order);
        return undefined;
      case 'why':
        return this.#exported.failureAt(call.offsetBytes, call.lengthBytes);
      default:
        return unreachable(call);
    }
  }
}

interface ThreadOptions {
  readonly program: string;
  readonly storePath: string;
  readonly key: StoreKey | undefined;
}

/** A chain that is read here first, and in threads once that pays. */
class ChainReading implements RestoreSource<ChainPlanEntry> {
  readonly sizeBytes: number;
  readonly trackSizeBytes: number;
  readonly #chain: ChainView;
  readonly #options: ThreadOptions;
  readonly #isLarge: boolean;
  #threads: ThreadedChain | undefined;
  #frameCount = 0;

  constructor(chain: ChainView, options: ThreadOptions) {
    this.sizeBytes = chain.sizeBytes;
    this.trackSizeBytes = chain.trackSizeBytes;
    this.#chain = chain;
    this.#options = options;
    this.#isLarge = chain.tracks().size * chain.trackSizeBytes >= LIMITS.laneBytesMin;
  }

  tracks(): TrackSet {
    return this.#chain.tracks();
  }

  /** Planned by the chain itself: the threads' own plan begins to read. */
  readPlan(tracks: TrackSet): Iterable<ChainPlanEntry> {
    return this.#chain.readPlan(tracks);
  }

  readFrame(entry: ChainPlanEntry): MaybePromise<readonly StoredTrack[]> {
    if (this.#threads !== undefined) return this.#threads.readFrame(entry);
    this.#frameCount += 1;
    if (this.#frameCount === FRAMES_ALONE && this.#isLarge) void this.#start();
    return this.#chain.readFrame(entry);
  }

  async #start(): Promise<void> {
    try {
      this.#threads = await ThreadedChain.start(this.#chain, { ...this.#options, takesChain: false });
    } catch {
      // One of its sets may have been merged away meanwhile; it is still open here.
    }
  }
}

/** A device that can say what a read has failed with: NBD has one number for all of it. */
class ExplainedDevice extends LayerDevice {
  /** By range, the oldest first. */
  readonly #failures: {
    readonly offsetBytes: number;
    readonly endBytes: number;
    readonly error: WireError;
  }[] = [];

  override read(target: Buffer, offsetBytes: number): MaybePromise<void> {
    try {
      const reading = this.below.read(target, offsetBytes);
      return reading?.catch((error: unknown) => this.#note(error, offsetBytes, target.length));
    } catch (error) {
      return this.#note(error, offsetBytes, target.length);
    }
  }

  /** The last failure of a read that overlaps the range. */
  failureAt(offsetBytes: number, lengthBytes: number): WireError | undefined {
    return this.#failures.findLast(
      (failure) => failure.offsetBytes < offsetBytes + lengthBytes && failure.endBytes > offsetBytes,
    )?.error;
  }

  #note(error: unknown, offsetBytes: number, lengthBytes: number): never {
    // A defect ends the process, with a message of its own.
    this.#failures.push({ offsetBytes, endBytes: offsetBytes + lengthBytes, error: toWireError(error) });
    if (this.#failures.length > FAILURE_COUNT_MAX) this.#failures.shift();
    throw error;
  }
}
