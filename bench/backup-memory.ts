/** The anonymous memory that processes and all their descendants hold together: its peak while something runs. */

import { readFileSync } from 'node:fs';
import { childrenOf } from '../native-tests/support/process.ts';

const SAMPLE_MS = 50;

/** Samples until it is stopped; a peak between two samples is missed. */
export class PeakMemory {
  readonly #roots: readonly number[];
  readonly #timer: NodeJS.Timeout;
  #peakBytes = 0;
  #processCount = 0;

  constructor(roots: readonly number[]) {
    this.#roots = roots;
    this.#timer = setInterval(() => this.#sample(), SAMPLE_MS);
  }

  stop(): { readonly peakBytes: number; readonly processCount: number } {
    clearInterval(this.#timer);
    return { peakBytes: this.#peakBytes, processCount: this.#processCount };
  }

  #sample(): void {
    const pids = new Set(this.#roots.flatMap(withDescendants));
    let bytes = 0;
    for (const pid of pids) bytes += anonymousBytes(pid);
    this.#peakBytes = Math.max(this.#peakBytes, bytes);
    this.#processCount = Math.max(this.#processCount, pids.size);
  }
}

function withDescendants(pid: number): number[] {
  try {
    return [pid, ...childrenOf(pid).flatMap(withDescendants)];
  } catch {
    return []; // It has ended meanwhile.
  }
}

/** Private memory without a file behind it, of all threads (proc(5), `RssAnon`). */
function anonymousBytes(pid: number): number {
  try {
    const kib = /^RssAnon:\s+([0-9]+) kB$/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1];
    return Number(kib ?? 0) * 1024;
  } catch {
    return 0;
  }
}
