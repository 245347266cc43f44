/**
 * What `bench/backup` compares: `cowbell backup` of a volume at rest, with each codec, and three tools that read the
 * same file: `qemu-img convert -c` with zstd, `restic backup --stdin`, and for the uncompressed one nbdcopy from
 * nbdkit's file plugin. What is saved is durable when each has ended.
 */

import { existsSync, mkdirSync, rmSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { must, mustCowbell, ROOT, Running } from '../native-tests/support/process.ts';
import { eventsOf } from '../native-tests/support/served.ts';
import { bytesOnDisk, type VolumeAtRest } from './backup-image.ts';

export type Codec = 'zstd' | 'fast' | 'none';

/** The command, as users run it. */
export const COWBELL = ['env', '-u', 'NODE_OPTIONS', process.execPath, join(ROOT, 'bin/cowbell.cjs')];
const LIMIT_MS = 900_000;

export interface Saved {
  readonly seconds: number;
  /** Of all its processes and threads. */
  readonly cpuSeconds: number;
  /** On the disk, for this save alone. */
  readonly bytes: number;
  /** Of frames, where the tool tells. */
  readonly payloadBytes?: number;
}

/** A tool that saves a volume in full, and again after changes where it can. */
export interface Saver {
  readonly name: string;
  /** Forgets all that was saved. */
  renew(): Promise<void>;
  /** The first call after `renew` saves everything, each further one what changed since the one before. */
  save(): Promise<Saved>;
  /** Gives the room back. */
  remove(): void;
}

/** The priority that a session's process gives itself: on a busy machine any other would be of another length. */
const NICE = ['nice', '-n', '10'];

/** Ends with a line of what the command and all that it waited for took of the processors. */
const TIMED = ['bash', '-c', 'TIMEFORMAT="cpu %U %S"; time "$0" "$@"'];

interface Command {
  readonly words: readonly string[];
  readonly env?: Readonly<Record<string, string>>;
  /** Told of it as soon as it runs. */
  readonly onStarted?: (running: Running) => void;
}

/**
 * Runs a command that saves to `path`, or restores to it.
 *
 * @returns what it took, with its standard output.
 */
export async function timed(path: string, command: Command): Promise<Saved & { readonly stdout: string }> {
  const { words, env = {}, onStarted } = command;
  const before = existsSync(path) ? bytesOnDisk(path) : 0;
  // What others have still to write would be written in this one's time.
  await must('sync', ['-f', dirname(path)], { timeoutMs: LIMIT_MS });
  const started = performance.now();
  const [program = '', ...rest] = [...NICE, ...TIMED, ...words];
  const running = new Running(program, rest, { env });
  onStarted?.(running);
  const { status, stdout, stderr } = await running.wait(LIMIT_MS);
  const seconds = (performance.now() - started) / 1000;
  const cpu = /^cpu ([0-9.]+) ([0-9.]+)$/m.exec(stderr);
  if (status !== 0 || cpu === null) throw new Error(`${words.join(' ')}: ${stdout}${stderr}`);
  return {
    seconds,
    cpuSeconds: Number(cpu[1]) + Number(cpu[2]),
    bytes: bytesOnDisk(path) - before,
    stdout,
  };
}

export class CowbellSaver implements Saver {
  readonly name: string;
  readonly #volume: VolumeAtRest;
  readonly #store: string;
  readonly #codec: Codec;
  #isFirst = true;

  constructor(directory: string, volume: VolumeAtRest, codec: Codec) {
    this.name = `cowbell-${codec}`;
    this.#volume = volume;
    this.#store = join(directory, this.name);
    this.#codec = codec;
  }

  async renew(): Promise<void> {
    this.remove();
    await mustCowbell(['store', 'init', this.#store]);
    this.#isFirst = true;
  }

  /** @param onStarted is told of the command that saves, as soon as it runs. */
  async save(onStarted?: (backup: Running) => void): Promise<Saved> {
    const level = this.#isFirst ? 'full' : 'incremental';
    const style = ['--level', level, '--codec', this.#codec, '--store', this.#store];
    const words = [...COWBELL, '--json', 'backup', ...style, this.#volume.directory];
    const saved = await timed(this.#store, { words, ...(onStarted === undefined ? {} : { onStarted }) });
    this.#isFirst = false;
    const set = eventsOf(saved.stdout).find(({ event }) => event === 'set');
    if (set?.['level'] !== level) throw new Error(`Wanted a set of level ${level}, got ${saved.stdout}`);
    return { ...saved, payloadBytes: Number(set['bytesStored']) };
  }

  remove(): void {
    rmSync(this.#store, { recursive: true, force: true });
  }
}

/** A peer that makes one file of another. */
class Converter implements Saver {
  readonly name: string;
  readonly #target: string;
  readonly #command: (target: string) => readonly string[];

  constructor(directory: string, name: string, command: (target: string) => readonly string[]) {
    this.name = name;
    this.#target = join(directory, name);
    this.#command = command;
  }

  async renew(): Promise<void> {
    this.remove();
  }

  save(): Promise<Saved> {
    return timed(this.#target, { words: this.#command(this.#target) });
  }

  remove(): void {
    rmSync(this.#target, { force: true });
  }
}

/** With the cache mode that ends with a flush: by default what it wrote may be lost in a power cut. */
export function qemuImg(directory: string, source: string): Saver {
  const style = ['-c', '-O', 'qcow2', '-o', 'compression_type=zstd', '-t', 'writeback'];
  const words = ['qemu-img', 'convert', '-f', 'raw', ...style, source];
  return new Converter(directory, 'qemu-img', (target) => [...words, target]);
}

export function nbdcopy(directory: string, source: string): Saver {
  const server = ['[', 'nbdkit', '-r', '--exit-with-parent', 'file', source, ']'];
  return new Converter(directory, 'nbdcopy', (target) => ['nbdcopy', '--flush', '--', ...server, target]);
}

export class ResticSaver implements Saver {
  readonly name = 'restic';
  readonly #source: string;
  readonly #repository: string;
  readonly #cache: string;

  constructor(directory: string, source: string) {
    this.#source = source;
    this.#repository = join(directory, 'restic');
    this.#cache = join(directory, 'restic-cache');
  }

  async renew(): Promise<void> {
    this.remove();
    mkdirSync(this.#cache, { recursive: true });
    await must('restic', ['-q', 'init'], { env: this.#env() });
  }

  save(): Promise<Saved> {
    // A file as standard input, not a pipe that this process would have to fill.
    const command = 'exec restic -q backup --stdin --stdin-filename volume < "$0"';
    return timed(this.#repository, { words: ['sh', '-c', command, this.#source], env: this.#env() });
  }

  remove(): void {
    rmSync(this.#repository, { recursive: true, force: true });
    rmSync(this.#cache, { recursive: true, force: true });
  }

  #env() {
    return resticEnv(this.#repository, this.#cache);
  }
}

/** What restic needs to know of a repository of this benchmark. */
export function resticEnv(repository: string, cache: string) {
  return { RESTIC_REPOSITORY: repository, RESTIC_PASSWORD: 'bench', RESTIC_CACHE_DIR: cache };
}
