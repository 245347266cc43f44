/**
 * A volume that is backed up and then lost, and `cowbell recover` of it, for native tests.
 *
 * The volume's lower part is random, the rest has never been written; the last set is an incremental one, so that what is
 * missing lies in two files of the store. Its home is `home.raw` beside its directory and is deleted at the end.
 */
import { randomBytes } from 'node:crypto';
import { closeSync, openSync, readFileSync, readSync, rmSync } from 'node:fs';
import { setTimeout as wait } from 'node:timers/promises';
import { NbdClient } from '../../src/nbd/index.ts';
import { mustCowbell, type Running, startCowbell } from './process.ts';
import { backUp, serveVolume, statusOf } from './served.ts';

export const MIB = 1_048_576;
export const TRACK_BYTES = 65_536;
const ATTEMPT_COUNT_MAX = 2400;
const ATTEMPT_MS = 25;

interface Teardown {
  teardown(stop: () => void | Promise<void>): void;
}

export interface Lost {
  /** The path of a name in the test's directory: `vol`, `store`, `home.raw`. */
  readonly at: (name: string) => string;
  readonly volume: string;
  readonly store: string;
  readonly volumeId: string;
  /** What the volume held; tests write here what they write there. */
  readonly model: Buffer;
  /** Ids of the full and of the incremental set. */
  readonly sets: readonly string[];
}

export interface LostOptions {
  readonly sizeMib: number;
  /** The random part, from the beginning on. */
  readonly usedMib: number;
  /** Words that make the store an encrypted one, and open it. */
  readonly init?: readonly string[];
  readonly key?: readonly string[];
}

/** Makes a volume, backs it up twice, stops its server and deletes its home. */
export async function loseVolume(t: Teardown, options: LostOptions): Promise<Lost> {
  const { sizeMib, usedMib, init = [], key = [] } = options;
  const { at, volume, server, uri } = await serveVolume(t, { size: `${sizeMib}M` });
  await mustCowbell(['store', 'init', at('store'), ...init]);
  const model = Buffer.alloc(sizeMib * MIB);
  const client = await NbdClient.connect(uri);
  const put = async (offsetBytes: number, lengthBytes: number): Promise<void> => {
    randomBytes(lengthBytes).copy(model, offsetBytes);
    await client.write(model.subarray(offsetBytes, offsetBytes + lengthBytes), offsetBytes);
  };
  for (let mib = 0; mib < usedMib; mib += 1) await put(mib * MIB, MIB);
  await client.flush();
  const full = await backUp(volume, at('store'), key);
  // Parts of tracks, whole ones, and some in a row.
  for (const [offsetBytes, lengthBytes] of [
    [3 * TRACK_BYTES + 512, 1024],
    [MIB + TRACK_BYTES, TRACK_BYTES],
    [(usedMib - 2) * MIB, 8 * TRACK_BYTES],
  ] as const)
    await put(offsetBytes, lengthBytes);
  await client.flush();
  await client.disconnect();
  const incremental = await backUp(volume, at('store'), key);
  const { volumeId } = await statusOf(volume);
  const stopped = await server.stop();
  if (stopped.status !== 0) throw new Error(stopped.stderr);
  if (!readFileSync(at('home.raw')).subarray(0, model.length).equals(model))
    throw new Error('The home is not what was written');
  rmSync(at('home.raw'));
  const sets = [String(full['set']), String(incremental['set'])];
  return { at, volume, store: at('store'), volumeId: String(volumeId), model, sets };
}

export interface Recovering {
  readonly server: Running;
  readonly uri: string;
  /** The `recovering` event. */
  readonly begun: Readonly<Record<string, unknown>>;
}

/** Runs `recover --json` with these words and waits until it accepts clients. */
export async function startRecovery(t: Teardown, words: readonly string[]): Promise<Recovering> {
  const server = startCowbell(['--json', 'recover', ...words]);
  t.teardown(async () => {
    if (server.ended === undefined) await server.stop('SIGKILL');
  });
  const ready = eventOf(await server.waitForLine(/"event":"ready"/));
  const begun = eventOf(await server.waitForLine(/"event":"recovering"/));
  return { server, uri: String(ready['uri']), begun };
}

export function eventOf(line: string): Readonly<Record<string, unknown>> {
  const value: unknown = JSON.parse(line);
  return typeof value === 'object' && value !== null ? { ...value } : {};
}

/** What `status` tells of a recovery; undefined where the volume is under none. */
export async function recoveryOf(volume: string): Promise<Readonly<Record<string, unknown>> | undefined> {
  const { recovery } = await statusOf(volume);
  return typeof recovery === 'object' && recovery !== null ? { ...recovery } : undefined;
}

/** Waits until `probe` says yes. */
export async function until(what: string, probe: () => Promise<boolean> | boolean): Promise<void> {
  for (let attempt = 0; attempt < ATTEMPT_COUNT_MAX; attempt += 1) {
    if (await probe()) return;
    await wait(ATTEMPT_MS);
  }
  throw new Error(`Not ${what} after ${(ATTEMPT_COUNT_MAX * ATTEMPT_MS) / 1000} s`);
}

/** Reads a range of an export with a connection of its own. */
export async function readFrom(uri: string, offsetBytes: number, lengthBytes: number): Promise<Buffer> {
  const client = await NbdClient.connect(uri);
  try {
    const content = Buffer.alloc(lengthBytes);
    for (let at = 0; at < lengthBytes; at += MIB)
      await client.read(content.subarray(at, at + MIB), offsetBytes + at);
    return content;
  } finally {
    await client.disconnect();
  }
}

/** The first bytes of a file. */
export function readHead(path: string, lengthBytes: number): Buffer {
  const content = Buffer.alloc(lengthBytes);
  const descriptor = openSync(path, 'r');
  readSync(descriptor, content, 0, lengthBytes, 0);
  closeSync(descriptor);
  return content;
}

/** Changes an export and the model of it alike. */
export class ModelWriter {
  readonly #client: NbdClient;
  readonly #model: Buffer;
  /** Tracks that were changed. */
  readonly tracks = new Set<number>();

  private constructor(client: NbdClient, model: Buffer) {
    this.#client = client;
    this.#model = model;
  }

  static async connect(uri: string, model: Buffer): Promise<ModelWriter> {
    return new ModelWriter(await NbdClient.connect(uri), model);
  }

  async write(offsetBytes: number, lengthBytes: number): Promise<void> {
    const content = randomBytes(lengthBytes);
    await this.#client.write(content, offsetBytes);
    content.copy(this.#model, offsetBytes);
    this.#touched(offsetBytes, lengthBytes);
  }

  async zero(offsetBytes: number, lengthBytes: number): Promise<void> {
    await this.#client.writeZeroes(offsetBytes, lengthBytes, { mayTrim: true });
    this.#model.fill(0, offsetBytes, offsetBytes + lengthBytes);
    this.#touched(offsetBytes, lengthBytes);
  }

  async flush(): Promise<void> {
    await this.#client.flush();
  }

  async end(): Promise<void> {
    await this.#client.flush();
    await this.#client.disconnect();
  }

  /** Whether the export reads as the model does. */
  async agrees(offsetBytes: number, lengthBytes: number): Promise<boolean> {
    const found = Buffer.alloc(lengthBytes);
    await this.#client.read(found, offsetBytes);
    return found.equals(this.#model.subarray(offsetBytes, offsetBytes + lengthBytes));
  }

  #touched(offsetBytes: number, lengthBytes: number): void {
    const last = Math.floor((offsetBytes + lengthBytes - 1) / TRACK_BYTES);
    for (let track = Math.floor(offsetBytes / TRACK_BYTES); track <= last; track += 1) this.tracks.add(track);
  }
}
