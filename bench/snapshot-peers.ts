/**
 * What the snapshot benchmark compares: volumes of Cowbell with no, one and several snapshots, and qcow2 files under
 * qemu-nbd with as many internal snapshots or external overlays. All begin with the same content, and their tracks
 * and clusters are of one size, 64 KiB.
 */

import { existsSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { must, mustCowbell, ROOT, Running, startCowbell } from '../native-tests/support/process.ts';
import { systemClock } from '../src/base/index.ts';
import { reachVolume, type VolumeAccess } from '../src/daemon/index.ts';
import { runFio } from './fio.ts';

export const TRACK_BYTES = 65_536;

export type Kind = 'cowbell' | 'bare' | 'qcow2' | 'internal' | 'overlay';

/** A server and what it serves. */
export interface Contender {
  readonly name: string;
  readonly kind: Kind;
  readonly snapshotCount: number;
  /** Of what is written. */
  uri(): string;
  pids(): readonly number[];
  /** To be brought into the page cache. */
  files(): readonly string[];
  /** Nothing of what is served is kept by the newest snapshot yet: each track's next write needs a copy. */
  renew(): Promise<void>;
  /** Serves the oldest snapshot until it is told to end. */
  serveOldest(): Promise<{ readonly uri: string; readonly pids: readonly number[]; end(): Promise<void> }>;
  stop(): Promise<void>;
}

export interface Wanted {
  readonly directory: string;
  readonly sizeBytes: number;
  readonly snapshotCount: number;
  /** What the volume begins with; holes all over where left out. */
  readonly source?: string;
}

const NO_EVENTS = { session: () => undefined, progress: () => undefined, warning: () => undefined };

/** Each older snapshot keeps that share of all tracks; the newest keeps what the measured writes hit. */
const SHARE_OF_OLDER = 1 / 8;

/** Begins `snapshotCount` snapshots, the older ones with something to keep. */
async function fillSnapshots(contender: Contender, { sizeBytes, snapshotCount }: Wanted): Promise<void> {
  for (let index = 1; index < snapshotCount; index += 1) {
    const stride = TRACK_BYTES / SHARE_OF_OLDER;
    await runFio({
      uri: contender.uri(),
      rw: 'write',
      blockSize: '4k',
      depth: 16,
      seconds: 60,
      strideBytes: stride,
      requestCount: sizeBytes / stride,
      sizeBytes,
    });
    await contender.renew();
  }
}

// --- Cowbell ---

export class CowbellContender implements Contender {
  readonly kind = 'cowbell';
  readonly name: string;
  readonly snapshotCount: number;
  readonly #directory: string;
  readonly #server: Running;
  readonly #access: VolumeAccess;
  #madeCount = 0;
  /** Oldest first. */
  readonly #names: string[] = [];

  private constructor(name: string, directory: string, count: number, server: Running, access: VolumeAccess) {
    this.name = name;
    this.#directory = directory;
    this.snapshotCount = count;
    this.#server = server;
    this.#access = access;
  }

  static async start(name: string, wanted: Wanted): Promise<CowbellContender> {
    const directory = join(wanted.directory, name);
    await mustCowbell(['volume', 'create', directory, '--size', String(wanted.sizeBytes)]);
    const server = startCowbell(['serve', directory]);
    await server.waitForLine(/^ready nbd/);
    const access = await reachVolume(directory, { activity: 'bench', clock: systemClock });
    const contender = new CowbellContender(name, directory, wanted.snapshotCount, server, access);
    if (wanted.source !== undefined) await must('nbdcopy', [wanted.source, contender.uri()]);
    await contender.renew();
    await fillSnapshots(contender, wanted);
    return contender;
  }

  uri(): string {
    return this.#uriOf(this.name);
  }

  pids(): readonly number[] {
    return pidsOf(this.#server);
  }

  files(): readonly string[] {
    return [join(this.#directory, 'home.raw')];
  }

  /** A new snapshot; where there are as many as there should be, in the place of the newest. */
  async renew(): Promise<void> {
    if (this.snapshotCount === 0) return;
    if (this.#names.length === this.snapshotCount) {
      const newest = this.#names.pop();
      if (newest !== undefined) await this.#access.snapshotDelete(newest);
    }
    const name = `s${this.#madeCount}`;
    await this.#create(name);
    this.#names.push(name);
  }

  /** Makes a snapshot and deletes it. @returns for how long writes were held up, in milliseconds. */
  async freeze(): Promise<number> {
    const name = `f${this.#madeCount}`;
    const freezeMs = await this.#create(name);
    await this.#access.snapshotDelete(name);
    return freezeMs;
  }

  /** Tracks written since the last freeze. */
  async changedTracks(): Promise<number> {
    return Number((await this.#access.status())['changedTracks']);
  }

  async serveOldest(): ReturnType<Contender['serveOldest']> {
    const uri = this.#uriOf(`${this.name}@${this.#names[0] ?? ''}`);
    return { uri, pids: this.pids(), end: async () => undefined };
  }

  async stop(): Promise<void> {
    await this.#access.close();
    await this.#server.stop();
  }

  async #create(name: string): Promise<number> {
    this.#madeCount += 1;
    const [made] = await this.#access.snapshotCreate({ name }, NO_EVENTS);
    return Number(made?.['freezeMs']);
  }

  #uriOf(exportName: string): string {
    return `nbd+unix:///${exportName}?socket=${join(this.#directory, 'nbd.sock')}`;
  }
}

/** Cowbell's NBD server over a raw file, without a volume: what tracking is compared with. */
export async function startBare(name: string, wanted: Wanted): Promise<Contender> {
  const { directory, sizeBytes, source } = wanted;
  const file = join(directory, `${name}.raw`);
  const socket = join(directory, `${name}.sock`);
  await must('truncate', ['-s', String(sizeBytes), file]);
  const args = [
    `--import=${join(ROOT, 'scripts/ts-hooks.mjs')}`,
    join(ROOT, 'bench/bare-server.ts'),
    file,
    socket,
  ];
  // The same thread pool as that of `cowbell serve`.
  const env = { UV_THREADPOOL_SIZE: '8' };
  const server = new Running(process.execPath, args, { cwd: ROOT, env });
  await server.waitForLine(/^ready/);
  const uri = `nbd+unix:///bare?socket=${socket}`;
  if (source !== undefined) await must('nbdcopy', [source, uri]);
  return {
    name,
    kind: 'bare',
    snapshotCount: 0,
    uri: () => uri,
    pids: () => pidsOf(server),
    files: () => [file],
    renew: async () => undefined,
    serveOldest: () => Promise.reject(new Error('A raw file has no snapshots')),
    stop: async () => {
      await server.stop();
    },
  };
}

// --- qcow2 under qemu-nbd ---

/** Neither kind of snapshot can be made while qemu-nbd serves the file: it ends, and begins again. */
export class QcowContender implements Contender {
  readonly kind: 'qcow2' | 'internal' | 'overlay';
  readonly name: string;
  readonly snapshotCount: number;
  readonly #directory: string;
  readonly #socket: string;
  /** The base, then its overlays. */
  readonly #files: string[];
  #madeCount = 0;
  /** Names of internal snapshots, oldest first. */
  readonly #internal: string[] = [];
  #server: Running | undefined;

  private constructor(kind: 'qcow2' | 'internal' | 'overlay', name: string, wanted: Wanted) {
    this.kind = kind;
    this.name = name;
    this.snapshotCount = wanted.snapshotCount;
    this.#directory = wanted.directory;
    this.#socket = join(wanted.directory, `${name}.sock`);
    this.#files = [join(wanted.directory, `${name}.qcow2`)];
  }

  static async start(
    kind: 'qcow2' | 'internal' | 'overlay',
    name: string,
    wanted: Wanted & { readonly source: string },
  ): Promise<QcowContender> {
    const contender = new QcowContender(kind, name, wanted);
    await must('qemu-img', ['convert', '-f', 'raw', '-O', 'qcow2', wanted.source, contender.#top]);
    contender.#server = await contender.#serve(['-f', 'qcow2', contender.#top]);
    await contender.renew();
    await fillSnapshots(contender, wanted);
    return contender;
  }

  get #top(): string {
    return this.#files.at(-1) ?? '';
  }

  uri(): string {
    return `nbd+unix:///?socket=${this.#socket}`;
  }

  pids(): readonly number[] {
    return this.#server === undefined ? [] : pidsOf(this.#server);
  }

  files(): readonly string[] {
    return this.#files;
  }

  async renew(): Promise<void> {
    if (this.snapshotCount === 0) return;
    await this.#whileStopped(async () => {
      this.#madeCount += 1;
      await (this.kind === 'internal' ? this.#renewInternal() : this.#renewOverlay());
    });
  }

  async #renewInternal(): Promise<void> {
    if (this.#internal.length === this.snapshotCount) {
      await must('qemu-img', ['snapshot', '-d', this.#internal.pop() ?? '', this.#top]);
    }
    const name = `s${this.#madeCount}`;
    await must('qemu-img', ['snapshot', '-c', name, this.#top]);
    this.#internal.push(name);
  }

  async #renewOverlay(): Promise<void> {
    if (this.#files.length > this.snapshotCount) rmSync(this.#files.pop() ?? '');
    const overlay = join(this.#directory, `${this.name}-${this.#madeCount}.qcow2`);
    await must('qemu-img', ['create', '-q', '-f', 'qcow2', '-F', 'qcow2', '-b', this.#top, overlay]);
    this.#files.push(overlay);
  }

  async serveOldest(): ReturnType<Contender['serveOldest']> {
    await this.#server?.stop();
    const oldest = this.kind === 'internal' ? ['-l', `snapshot.name=${this.#internal[0] ?? ''}`] : [];
    const file = this.kind === 'internal' ? this.#top : (this.#files[0] ?? '');
    const server = await this.#serve(['-r', ...oldest, '-f', 'qcow2', file]);
    this.#server = undefined;
    return {
      uri: this.uri(),
      pids: pidsOf(server),
      end: async () => {
        await server.stop();
        this.#server = await this.#serve(['-f', 'qcow2', this.#top]);
      },
    };
  }

  async stop(): Promise<void> {
    await this.#server?.stop();
  }

  async #whileStopped(body: () => Promise<void>): Promise<void> {
    await this.#server?.stop();
    await body();
    this.#server = await this.#serve(['-f', 'qcow2', this.#top]);
  }

  async #serve(args: readonly string[]): Promise<Running> {
    rmSync(this.#socket, { force: true });
    const server = new Running('qemu-nbd', ['-t', '-e', '8', '-k', this.#socket, ...args]);
    // It says nothing when it is ready, and forgets a signal to end that comes before it answers.
    while (!existsSync(this.#socket)) {
      if (server.ended !== undefined) throw new Error(`${server.title} ended: ${server.ended.stderr}`);
      await new Promise((resolve) => setTimeout(resolve, 10));
    }
    await must('nbdinfo', ['--size', this.uri()]);
    return server;
  }
}

function pidsOf({ child }: Running): number[] {
  return child.pid === undefined ? [] : [child.pid];
}
