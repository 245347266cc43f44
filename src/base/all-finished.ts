/**
 * As `Promise.all`, but fails only when none of the promises runs any more: what they use is free then.
 *
 * @throws what the first of them, in their order, failed with.
 */
export async function allFinished<T>(promises: readonly Promise<T>[]): Promise<T[]> {
  await Promise.allSettled(promises);
  return Promise.all(promises);
}

/**
 * Closes what there is, one after the other.
 *
 * @throws what the first of them failed with, when all others are closed.
 */
export async function closeAll(parts: readonly ({ close(): Promise<void> } | undefined)[]): Promise<void> {
  const failures: unknown[] = [];
  for (const part of parts) {
    try {
      await part?.close();
    } catch (error) {
      failures.push(error);
    }
  }
  if (failures.length > 0) throw failures[0];
}
