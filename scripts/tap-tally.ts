/**
 * Counts the results in TAP, the text that tap's runner writes, as it arrives.
 *
 * What counts is each assertion. The line that closes a subtest or a file repeats what is inside and is not
 * counted, with two exceptions: one that fails although nothing inside failed (a crash, a time limit, a
 * wrong plan) is one failure, and a skipped subtest, which has nothing inside, is one skip.
 */
import { Parser } from 'tap-parser';

export interface Tally {
  passed: number;
  failed: number;
  skipped: number;
}

/** What a reader of the results is told while they arrive. */
export interface TallyListener {
  /** All of one test file is counted. */
  readonly file: (name: string, ok: boolean, tally: Readonly<Tally>, durationMs: number | undefined) => void;
  readonly failure: (name: string, details: unknown) => void;
  readonly skip: (name: string, reason: string) => void;
}

/** One counted line, as tap-parser reports it. */
interface TestPoint {
  readonly ok: boolean;
  readonly name: string;
  readonly fullname: string;
  readonly skip: boolean | string;
  readonly todo: boolean | string;
  readonly diag: unknown;
  readonly time: number | null;
  readonly closingTestPoint: boolean;
}

/** Takes TAP piece by piece; `finish` returns what was counted. */
export class TapTally {
  readonly #parser = new Parser();
  readonly #total: Tally;

  constructor(listener: TallyListener) {
    this.#total = follow(this.#parser, listener, 0);
  }

  write(text: string): void {
    this.#parser.write(text);
  }

  finish(): Tally {
    this.#parser.end();
    return this.#total;
  }
}

/** Counts everything below `parser` into the tally returned, as it comes. */
function follow(parser: Parser, listener: TallyListener, depth: number): Tally {
  const tally: Tally = { passed: 0, failed: 0, skipped: 0 };
  let inside: Tally = { passed: 0, failed: 0, skipped: 0 };
  parser.on('child', (child: Parser) => {
    inside = follow(child, listener, depth + 1);
  });
  parser.on('assert', (point: TestPoint) => {
    if (point.closingTestPoint) {
      const file = { ...inside };
      if (!point.ok && file.failed === 0) countPoint(point, file, listener);
      else if (point.skip !== false && isEmpty(file)) countPoint(point, file, listener);
      add(tally, file);
      if (depth === 0) listener.file(point.name, point.ok, file, point.time ?? undefined);
    } else {
      countPoint(point, tally, listener);
    }
  });
  return tally;
}

function countPoint(point: TestPoint, tally: Tally, listener: TallyListener): void {
  if (point.skip !== false || point.todo !== false) {
    tally.skipped += 1;
    const reason = point.skip === false ? point.todo : point.skip;
    listener.skip(point.fullname, typeof reason === 'string' ? reason : 'no reason given');
  } else if (point.ok) {
    tally.passed += 1;
  } else {
    tally.failed += 1;
    listener.failure(point.fullname, point.diag);
  }
}

function add(total: Tally, part: Readonly<Tally>): void {
  total.passed += part.passed;
  total.failed += part.failed;
  total.skipped += part.skipped;
}

function isEmpty(tally: Readonly<Tally>): boolean {
  return tally.passed + tally.failed + tally.skipped === 0;
}
