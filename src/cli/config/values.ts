/** The values of the config file that no option of a command has: durations, shares, schedules, names. Pure. */

import { LIMITS, parseSize } from '../../base/index.ts';
import { PolicyError, Schedule } from '../../policy/index.ts';
import { UsageError } from '../exit.ts';
import { type Reader, scalar } from './document.ts';

const DURATION_FACTORS: Readonly<Record<string, number>> = {
  s: 1000,
  m: 60_000,
  h: 3_600_000,
  d: 86_400_000,
  w: 604_800_000,
};

const DURATION_WANTED = 'a time such as 30s, 5m, 6h, 1d or 2w';

/** A time with its unit, as milliseconds; the range is inclusive. */
export function duration({ min, max }: { readonly min: number; readonly max: number }): Reader<number> {
  return scalar(DURATION_WANTED, (text) => {
    const match = /^(\d+(?:\.\d+)?)([smhdw])$/.exec(text);
    const timeMs = Math.round(Number(match?.[1]) * (DURATION_FACTORS[match?.[2] ?? ''] ?? Number.NaN));
    if (Number.isNaN(timeMs)) throw new UsageError(`It is '${text}', wanted ${DURATION_WANTED}`);
    if (timeMs >= min && timeMs <= max) return timeMs;
    throw new UsageError(`It is '${text}', wanted from ${formatDuration(min)} to ${formatDuration(max)}`);
  });
}

/** `0s`, `90s`, `6h`: the largest unit that gives a whole number. */
export function formatDuration(timeMs: number): string {
  const [unit, factor] = Object.entries(DURATION_FACTORS).findLast(
    ([, one]) => timeMs >= one && timeMs % one === 0,
  ) ?? ['s', 1000];
  return `${timeMs / factor}${unit}`;
}

/** At least one byte. */
export const size: Reader<number> = scalar('a size such as 100M', (text) => {
  const bytes = parseSize(text);
  if (bytes !== undefined && bytes > 0) return bytes;
  throw new UsageError(
    `It is '${text}', wanted bytes or a number with K, M, G or T, such as 10G, more than 0`,
  );
});

/** `70%` as 0.7. */
export const share: Reader<number> = scalar('a share such as 70%', (text) => {
  const match = /^(\d{1,3}(?:\.\d+)?) ?%$/.exec(text);
  const percent = Number(match?.[1]);
  if (percent > 0 && percent <= 100) return percent / 100;
  throw new UsageError(`It is '${text}', wanted a share above 0% and up to 100%, such as 70%`);
});

/** A name of the time zone database. */
export const timeZone: Reader<string> = scalar('a time zone such as Europe/Berlin', (text) => {
  try {
    return new Intl.DateTimeFormat('en', { timeZone: text }).resolvedOptions().timeZone;
  } catch (error) {
    const message = `It is '${text}', wanted a time zone such as UTC or Europe/Berlin`;
    throw new UsageError(message, { cause: error });
  }
});

/** The pattern of a schedule; its time zone may be said elsewhere, and makes no difference to whether it is one. */
export const schedule: Reader<string> = scalar('a schedule such as 0 2 * * *', (text) => {
  try {
    return new Schedule(text, 'UTC').pattern;
  } catch (error) {
    if (error instanceof PolicyError) throw new UsageError(error.message, { cause: error });
    throw error;
  }
});

/** What users name: policies and stores. */
export function assertName(name: string): void {
  if (/^[A-Za-z0-9_][A-Za-z0-9._-]{0,63}$/.test(name)) return;
  throw new UsageError(
    `It is '${name}', wanted up to 64 letters, digits, '.', '_' and '-', the first no '.' or '-'`,
  );
}

/** How the time is written in a snapshot's name. */
const TIME_LENGTH = '20261122T020000Z'.length;

/** What a snapshot is named: `auto-{time}`, as what is before and behind the time. */
export const snapshotName: Reader<{ readonly prefix: string; readonly suffix: string }> = scalar(
  'a name such as auto-{time}',
  (text) => {
    const [prefix, suffix, ...rest] = text.split('{time}');
    const isName = /^[A-Za-z0-9._-]*$/.test(`${prefix}${suffix}`) && !/^[.-]/.test(prefix ?? '');
    if (prefix === undefined || suffix === undefined || rest.length > 0 || !isName) {
      throw new UsageError(
        `It is '${text}', wanted letters, digits, '.', '_' and '-' with {time} once among them, such as auto-{time}`,
      );
    }
    const length = prefix.length + TIME_LENGTH + suffix.length;
    if (length <= LIMITS.snapshotNameLengthMax) return { prefix, suffix };
    throw new UsageError(
      `It gives names of ${length} characters, wanted at most ${LIMITS.snapshotNameLengthMax}`,
    );
  },
);
