/**
 * What a command says: JSON lines for programs, sentences for people.
 *
 * With `--json` standard output carries one JSON object a line, the last one with `"event":"done"` or
 * `"event":"error"`, and nothing else. Without it, results are sentences on standard output; progress is a
 * bar on a terminal and a line at every tenth elsewhere, both on standard error, since progress is no result.
 *
 * Everything printed goes through here; no command touches a stream.
 */

import { SingleBar } from 'cli-progress';
import { type Clock, formatSize } from '../base/index.ts';
import { errorCode } from '../daemon/index.ts';
import { errorLine } from './exit.ts';

/** The part of a stream that output needs. */
export interface TextSink {
  write(text: string): unknown;
  readonly isTTY?: boolean;
}

/** An event of the command line: `event` names it, the other members are plain JSON in camelCase. */
export interface OutputEvent {
  readonly event: string;
  readonly [member: string]: unknown;
}

export interface ProgressStep {
  /** What is under way: `Backing up vol`. */
  readonly title: string;
  readonly done: number;
  readonly total: number;
  /** Bytes so far, where a rate is to be shown. */
  readonly bytes?: number;
  /** Members of the JSON event. */
  readonly event: Readonly<Record<string, unknown>>;
}

export interface OutputOptions {
  readonly stdout: TextSink;
  readonly stderr: TextSink & NodeJS.WritableStream;
  readonly json: boolean;
  readonly debug: boolean;
  readonly clock: Clock;
}

/** A bar is redrawn, and a JSON progress event printed, no more often than this. */
const HOUR_MS = 3_600_000;
const PROGRESS_INTERVAL_MS = 200;
/** From when on a rate says anything. */
const PACE_AFTER_MS = 1000;

/** How fast work goes, as far as that can be said. */
interface Pace {
  readonly bytesPerSecond?: number;
  readonly secondsLeft?: number;
}

export class Output {
  readonly json: boolean;
  readonly #options: OutputOptions;
  #bar: SingleBar | undefined;
  #progressTitle = '';
  #progressTenth = 0;
  #progressBegan: { readonly atMs: number; readonly done: number; readonly bytes: number } | undefined;
  #progressShownMs = Number.NEGATIVE_INFINITY;

  constructor(options: OutputOptions) {
    this.#options = options;
    this.json = options.json;
  }

  /** A result: the event for programs, the lines for people. */
  report(event: OutputEvent, ...lines: readonly string[]): void {
    this.endProgress();
    if (this.json) this.#printJson(event);
    else for (const line of lines) this.#options.stdout.write(`${line}\n`);
  }

  /** Progress of the work named by `title`. A step at the end is always shown. */
  progress(step: ProgressStep): void {
    const isLast = step.total > 0 && step.done >= step.total;
    const nowMs = this.#options.clock.monotonicMs();
    const isDue = nowMs - this.#progressShownMs >= PROGRESS_INTERVAL_MS;
    if (step.title !== this.#progressTitle) {
      this.endProgress();
      this.#progressTitle = step.title;
      this.#progressBegan = { atMs: nowMs, done: step.done, bytes: step.bytes ?? 0 };
    } else if (this.json && !isDue && !isLast) return;
    this.#progressShownMs = nowMs;
    const pace = this.#paceOf(step, nowMs);
    if (this.json) this.#printJson({ event: 'progress', ...step.event, ...pace });
    else if (this.#options.stderr.isTTY === true) this.#drawBar(step, textOf(pace));
    else this.#printTenth(step, textOf(pace));
  }

  /** Since the work was first heard of; nothing in its first moments, which would foretell anything. */
  #paceOf({ done, total, bytes }: ProgressStep, nowMs: number): Pace {
    const began = this.#progressBegan;
    if (began === undefined || nowMs - began.atMs < PACE_AFTER_MS) return {};
    const seconds = (nowMs - began.atMs) / 1000;
    const bytesPerSecond = bytes === undefined ? undefined : Math.round((bytes - began.bytes) / seconds);
    const donePerSecond = (done - began.done) / seconds;
    const secondsLeft = donePerSecond > 0 ? Math.round((total - done) / donePerSecond) : undefined;
    return {
      ...(bytesPerSecond === undefined ? {} : { bytesPerSecond }),
      ...(secondsLeft === undefined || total < done ? {} : { secondsLeft }),
    };
  }

  /** Takes the bar away, so that what follows starts on a line of its own. */
  endProgress(): void {
    this.#bar?.stop();
    this.#bar = undefined;
    this.#progressTitle = '';
    this.#progressTenth = 0;
    this.#progressBegan = undefined;
    this.#progressShownMs = Number.NEGATIVE_INFINITY;
  }

  /** The last line of a command that succeeded. People need none. */
  done(): void {
    this.report({ event: 'done' });
  }

  /** A warning on standard error, whatever the format. */
  warn(sentence: string): void {
    this.#options.stderr.write(`cowbell: ${sentence}\n`);
  }

  /** The last line of a command that failed: one line on standard error; the stack with `--debug`. */
  fail(error: unknown): void {
    this.endProgress();
    const line = errorLine(error);
    this.#options.stderr.write(`${line}\n`);
    if (this.#options.debug) this.#printStack(error);
    if (this.json) {
      this.#printJson({ event: 'error', code: errorCode(error), message: line.slice('cowbell: '.length) });
    }
  }

  #printJson(event: OutputEvent): void {
    this.#options.stdout.write(`${JSON.stringify(event)}\n`);
  }

  #printStack(error: unknown): void {
    for (let at: unknown = error, depth = 0; at instanceof Error && depth < 8; at = at.cause, depth += 1) {
      this.#options.stderr.write(`${depth === 0 ? '' : 'caused by: '}${at.stack ?? at.message}\n`);
    }
  }

  #drawBar(step: ProgressStep, pace: string): void {
    if (this.#bar === undefined) {
      this.#bar = new SingleBar({
        format: '{title} [{bar}] {percentage} %{pace}',
        stream: this.#options.stderr,
        hideCursor: true,
        clearOnComplete: true,
      });
      this.#bar.start(step.total, step.done, { title: step.title, pace });
      return;
    }
    this.#bar.setTotal(step.total);
    this.#bar.update(step.done, { pace });
  }

  #printTenth(step: ProgressStep, pace: string): void {
    const tenth = step.total > 0 ? Math.floor((step.done / step.total) * 10) : 0;
    if (tenth <= this.#progressTenth) return;
    this.#progressTenth = tenth;
    this.#options.stderr.write(`${step.title}: ${tenth * 10} %${pace}\n`);
  }
}

function textOf({ bytesPerSecond, secondsLeft }: Pace): string {
  const rate = bytesPerSecond === undefined ? '' : `, ${formatSize(bytesPerSecond)}/s`;
  return secondsLeft === undefined ? rate : `${rate}, ${durationOf(secondsLeft)} left`;
}

/** `42 s`, `3 min 7 s`, `2 h 5 min`. */
function durationOf(seconds: number): string {
  if (seconds < 60) return `${seconds} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${seconds % 60} s`;
  return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
}

/** Rows under headings, columns aligned, for people. Numbers are given as text. */
export function table(headings: readonly string[], rows: readonly (readonly string[])[]): readonly string[] {
  const all = [headings, ...rows];
  const widths = headings.map((_, column) => Math.max(...all.map((row) => (row[column] ?? '').length)));
  return all.map((row) =>
    row
      .map((cell, column) => cell.padEnd(widths[column] ?? 0))
      .join('  ')
      .trimEnd(),
  );
}

/** Names and values, one a line, values aligned. Nested objects are indented; undefined members left out. */
export function describe(value: Readonly<Record<string, unknown>>, indent = ''): readonly string[] {
  const entries = Object.entries(value).filter(([, member]) => member !== undefined);
  const width = Math.max(
    0,
    ...entries.filter(([, member]) => !isList(member)).map(([name]) => words(name).length),
  );
  return entries.flatMap(([name, member]) => {
    const title = `${indent}${words(name)}:`;
    if (Array.isArray(member)) return describeList(title, member, indent);
    if (isRecord(member)) return [title, ...describe(member, `${indent}  `)];
    return [`${title.padEnd(indent.length + width + 1)} ${plain(name, member)}`];
  });
}

function describeList(title: string, members: readonly unknown[], indent: string): readonly string[] {
  if (members.length === 0) return [`${title} none`];
  return [
    title,
    ...members.flatMap((member) =>
      isRecord(member) ? describe(member, `${indent}  `) : [`${indent}  ${plain('', member)}`],
    ),
  ];
}

/** `writesWaiting` as people read it: `writes waiting`. The unit of a value goes into the value. */
function words(name: string): string {
  const bare = isSize(name) || isInstant(name) || isSpan(name) ? name.replace(/(Bytes|Ms)$/, '') : name;
  return bare.replace(/[A-Z]/g, (letter) => ` ${letter.toLowerCase()}`);
}

function isSize(name: string): boolean {
  return /[a-z]Bytes$|^bytes(Used|Max)$/.test(name);
}

function isInstant(name: string): boolean {
  return /^(created|started|ended|at|since|due|next|beginBy|lastDone|oldest)Ms$/.test(name);
}

/** In whole hours, as it was given. */
function isSpan(name: string): boolean {
  return name === 'keepLogMs';
}

function isList(value: unknown): boolean {
  return typeof value === 'object' && value !== null;
}

function plain(name: string, value: unknown): string {
  if (value === null) return 'none';
  if (typeof value === 'number' && isSize(name)) return formatSize(value);
  if (typeof value === 'number' && isInstant(name)) return new Date(value).toISOString();
  if (typeof value === 'number' && isSpan(name)) return `${value / HOUR_MS}h`;
  if (typeof value === 'boolean') return value ? 'yes' : 'no';
  return typeof value === 'string' ? value : (JSON.stringify(value) ?? 'none');
}

function isRecord(value: unknown): value is Readonly<Record<string, unknown>> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}
