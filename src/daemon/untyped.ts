/** Looks into values of which nothing is known but that they came as JSON, such as a status from another process. */

export type Untyped = Readonly<Record<string, unknown>>;

/** The members of an object; none of anything else. */
export function recordOf(value: unknown): Untyped {
  return typeof value === 'object' && value !== null && !Array.isArray(value) ? { ...value } : {};
}

/** The objects of a list; none of anything else. */
export function listOf(value: unknown): readonly Untyped[] {
  return Array.isArray(value) ? value.map(recordOf) : [];
}
