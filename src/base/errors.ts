/**
 * The error kinds of Cowbell. Three, never mixed:
 *
 * - operating errors (`BlockError` and the classes of each room that extend it): the world said no,
 *   the caller can act on `code`;
 * - `CorruptionError`: stored bytes are not what was written. Never retried, never masked with zeroes;
 * - programmer errors: `assert.ts`.
 *
 * A message is one sentence without a full stop: what failed, the actual value, what was wanted.
 */

/**
 * An operating error. `DetailsByCode` maps each documented code to the type of its details; a room
 * declares one such map and one subclass.
 */
export abstract class BlockError<
  DetailsByCode extends object,
  Code extends keyof DetailsByCode & string = keyof DetailsByCode & string,
> extends Error {
  readonly code: Code;
  readonly details: DetailsByCode[Code];

  constructor(code: Code, message: string, details: DetailsByCode[Code], options?: { cause?: unknown }) {
    super(message, options);
    this.name = new.target.name;
    this.code = code;
    this.details = details;
  }
}

export interface CorruptionPlace {
  /** File, database, set or device the bad bytes were found in. */
  readonly where: string;
  readonly expected?: string;
  readonly found?: string;
  /** Tracks known to be damaged, when the damage could be traced to tracks. */
  readonly tracks?: readonly number[];
}

/** Stored bytes differ from what was written. The command line ends with exit status 3. */
export class CorruptionError extends Error {
  override readonly name = 'CorruptionError';
  readonly place: CorruptionPlace;

  constructor(message: string, place: CorruptionPlace, options?: { cause?: unknown }) {
    super(message, options);
    this.place = place;
  }
}

/** The errno name of a system error, such as `ENOSPC`, or undefined for any other error. */
export function systemCode(error: unknown): string | undefined {
  if (!(error instanceof Error) || !('code' in error)) return undefined;
  return typeof error.code === 'string' ? error.code : undefined;
}

/** The message of anything that was thrown. */
export function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
