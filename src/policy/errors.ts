/** The operating errors of the room `policy`. */

import { BlockError } from '../base/index.ts';

export interface PolicyErrorDetails {
  /** What was given is no schedule, or one that never comes. */
  'bad-schedule': { readonly pattern: string; readonly timeZone: string };
}

export class PolicyError<Code extends keyof PolicyErrorDetails = keyof PolicyErrorDetails> extends BlockError<
  PolicyErrorDetails,
  Code
> {}
