/** Instants and spans that are typed: `2026-01-31`, `2026-01-31T18:00`, `30d`. Pure; every refusal is a usage error. */

import { UsageError } from './exit.ts';

const HOUR_MS = 3_600_000;
const SPAN_MS: Readonly<Record<string, number>> = {
  h: HOUR_MS,
  d: 24 * HOUR_MS,
  w: 7 * 24 * HOUR_MS,
  y: 365 * 24 * HOUR_MS,
};

/** A date or time, in UTC unless it names another zone, as milliseconds since the Unix epoch; undefined for other text. */
export function parseInstant(text: string): number | undefined {
  if (!/^\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d(\.\d{1,3})?)?(Z|[+-]\d\d:\d\d)?)?$/.test(text)) return undefined;
  const hasZone = /(Z|[+-]\d\d:\d\d)$/.test(text.slice(10));
  const timeMs = Date.parse(text.length === 10 ? text : `${text.replace(' ', 'T')}${hasZone ? '' : 'Z'}`);
  return Number.isNaN(timeMs) ? undefined : timeMs;
}

/** Reads a date or time as `parseInstant` does. @throws {UsageError} */
export function readInstant(option: string, text: string): number {
  const timeMs = parseInstant(text);
  if (timeMs !== undefined) return timeMs;
  throw new UsageError(`${option} is '${text}', wanted a time such as 2030-01-31T18:00:00, in UTC`);
}

/** Reads a span such as `48h`, `30d`, `4w` or `1y`, as milliseconds. @throws {UsageError} */
export function readSpan(option: string, text: string): number {
  const spanMs = parseSpan(text);
  if (spanMs === undefined)
    throw new UsageError(`${option} is '${text}', wanted a span such as 48h, 30d or 4w`);
  return spanMs;
}

function parseSpan(text: string): number | undefined {
  const [, count, unit = ''] = /^(\d{1,5})([hdwy])$/.exec(text) ?? [];
  return count === undefined ? undefined : Number(count) * (SPAN_MS[unit] ?? Number.NaN);
}

/**
 * Reads until when: a date or time, a span from now such as `12h`, `30d`, `4w` or `7y`, or `forever`.
 *
 * @returns milliseconds since the Unix epoch, or null for `forever`.
 * @throws {UsageError} for other text, and for an instant that has passed.
 */
export function readUntil(option: string, text: string, nowMs: number): number | null {
  if (text === 'forever') return null;
  const spanMs = parseSpan(text);
  const untilMs = spanMs === undefined ? parseInstant(text) : nowMs + spanMs;
  if (untilMs === undefined) {
    throw new UsageError(
      `${option} is '${text}', wanted a date such as 2030-01-31, a span such as 30d, or forever`,
    );
  }
  if (untilMs <= nowMs) throw new UsageError(`${option} is '${text}', which has passed`);
  return untilMs;
}
