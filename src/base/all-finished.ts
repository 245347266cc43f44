/**
 * As `Promise.all`, but fails only when none of the promises runs any more: what they use is free then.
 *
 * @throws what the first of them, in their order, failed with.
 */
export async function allFinished<T>(promises: readonly Promise<T>[]): Promise<T[]> {
  await Promise.allSettled(promises);
  return Promise.all(promises);
}
