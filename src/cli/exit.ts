/**
 * Exit statuses, and which error ends with which.
 *
 * The status of an error is decided by its code alone, so that a command ends alike whether the error was
 * raised here or in the serving process (`RemoteError` keeps the code).
 */

import { AssertionError, BlockError, CorruptionError, messageOf } from '../base/index.ts';
import { errorCode } from '../daemon/index.ts';

export const EXIT = { done: 0, operatingError: 1, usageError: 2, corruption: 3 } as const;
export type ExitStatus = (typeof EXIT)[keyof typeof EXIT];

export interface UsageErrorDetails {
  /** The command line asks for something that cannot be; the message says what and what would do. */
  usage: Record<string, never>;
}

/** What was typed is wrong: no state of the machine could make it right. */
export class UsageError extends BlockError<UsageErrorDetails> {
  constructor(message: string, options?: { cause?: unknown }) {
    super('usage', message, {}, options);
  }
}

/** Ctrl-C or SIGTERM, where a command has nothing better to say about what it left behind. */
export class InterruptedError extends BlockError<{ cancelled: Record<string, never> }> {
  constructor() {
    super('cancelled', 'Interrupted', {});
  }
}

/** `status --check` has found something that somebody has to look at. */
export class NotWellError extends BlockError<{ 'not-well': { readonly problems: number } }> {
  constructor(volume: string, problems: number) {
    const message = `Volume ${volume} has ${problems === 1 ? '1 problem' : `${problems} problems`}`;
    super('not-well', message, { problems });
  }
}

/** Codes of other rooms that mean: what was typed, or the remap file that was named, is wrong. */
const USAGE_CODES: ReadonlySet<string> = new Set([
  'usage',
  'duplicate-name',
  'unknown-export',
  'cannot-survive',
  'invalid-geometry',
  'invalid-name',
  'named-twice',
  'shrink-refused',
  'ambiguous-set',
  'several-sessions',
  'key-needed',
  'not-encrypted',
  'bad-table',
  'bad-range',
  'bad-remap-file',
  'bad-progress-file',
  'unknown-target',
  'outside-source',
  'misaligned',
  'uri-invalid',
  'bad-uri',
  'unknown-scheme',
  'device-invalid',
  'bad-config',
]);

export function exitStatusOf(error: unknown): ExitStatus {
  if (error instanceof CorruptionError) return EXIT.corruption;
  return USAGE_CODES.has(errorCode(error)) ? EXIT.usageError : EXIT.operatingError;
}

/** The one line that people get for an error, without the newline. */
export function errorLine(error: unknown): string {
  const message = messageOf(error).replace(/\s*\n\s*/g, '; ');
  const isDefect = error instanceof AssertionError || error instanceof TypeError;
  const note = isDefect ? ' (a defect in cowbell; run again with --debug and report it)' : '';
  return `cowbell: ${message}${note}`;
}
