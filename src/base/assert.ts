/**
 * Assertions for programmer errors. They stay on in production: a block device that goes on after an
 * impossible state may write wrong bytes, one that stops loses nothing that was flushed.
 *
 * Operating errors (`errors.ts`) and a peer's mistakes never go through here.
 */

export class AssertionError extends Error {
  override readonly name = 'AssertionError';
}

/** @throws {AssertionError} when `condition` is false. */
export function assert(condition: boolean, message: string): asserts condition {
  if (!condition) throw new AssertionError(message);
}

/** Marks the branch of an exhaustive switch that the types say cannot be reached. */
export function unreachable(value: never): never {
  throw new AssertionError(`Unreachable value ${JSON.stringify(value)}`);
}

/** Asserts that a value is there, for indexes that the code around it has just established. */
export function present<T>(value: T | undefined | null, message: string): T {
  assert(value !== undefined && value !== null, message);
  return value;
}
