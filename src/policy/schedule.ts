/**
 * When a schedule comes: five fields as cron has them (minute, hour, day of month, month, day of week), or `@hourly`,
 * `@daily`, `@weekly`, `@monthly`, `@yearly`, in a time zone. What the fields mean, and what becomes of an hour that
 * a clock change skips or repeats, is croner's: a time that is skipped comes at the end of the gap, and one that is
 * there twice comes once. Only its calculation is used; it starts no timers.
 */

import { Cron } from 'croner';
import { assert, messageOf } from '../base/index.ts';
import { PolicyError } from './errors.ts';

export class Schedule {
  readonly pattern: string;
  readonly #cron: Cron;

  /** @throws {PolicyError} bad-schedule for what cannot be read, or never comes. */
  constructor(pattern: string, timeZone: string) {
    this.pattern = pattern;
    const details = { pattern, timeZone };
    try {
      this.#cron = new Cron(pattern, { paused: true, timezone: timeZone, mode: '5-part' });
      if (this.#cron.nextRun(new Date(0)) !== null) return;
    } catch (error) {
      const why = messageOf(error)
        .replace(/^Cron\w+: /, '')
        .replace(/\.$/, '');
      const message = `The schedule is '${pattern}', wanted minute, hour, day of month, month and day of week: ${why}`;
      throw new PolicyError('bad-schedule', message, details, { cause: error });
    }
    throw new PolicyError('bad-schedule', `The schedule is '${pattern}', which never comes`, details);
  }

  /** The first time after `timeMs`, in milliseconds since the Unix epoch. */
  nextAfter(timeMs: number): number {
    const next = this.#cron.nextRun(new Date(timeMs));
    assert(next !== null, 'A schedule that comes once comes again');
    return next.getTime();
  }
}
