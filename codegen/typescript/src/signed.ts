/** A URL that opens one thing to whoever has it, until it expires or the key it was made with is revoked. */
export interface SignedUrl {
  url: string;
  expiresAt: Date;
}

export function signed({ url, expiresAt }: { url: string; expiresAt: string }): SignedUrl {
  return { url, expiresAt: new Date(expiresAt) };
}
